"""The end of a run: its best model, measured as its users will, and the page about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cliplet import model_folder
from cliplet.config import to_yaml
from cliplet.evaluation import Evaluation
from cliplet.evaluation.intervals import bootstrap_intervals
from cliplet.evaluation.report import write_report
from cliplet.model_card import model_card
from cliplet.models import DualEncoder
from cliplet.training.averages import best_mixture
from cliplet.training.chance import chance_loss
from cliplet.training.objective import is_taught, loss_in_stage
from cliplet.training.run_log import read_log
from cliplet.training.stages import stage_at
from cliplet.training.start import start_model
from cliplet.training.trainer import TRAINED_SHARE

if TYPE_CHECKING:
    from cliplet.training.trainer import Trainer

Say = Callable[[str], None]


def finish(trainer: Trainer, command: str, say: Say) -> Evaluation:
    """Measures the best model again in fp32, as anyone who opens it will, and writes what the run leaves behind.

    All ranks measure together; rank 0 writes. With train.wise_ft the best model is the best mixture with the start.
    """
    config, state, ranks = trainer.config, trainer.state, trainer.ranks
    folder, parameters = config.output, state.model.count_parameters()
    if ranks.first:
        with trainer.averaged():
            state.model.save_pretrained(
                folder / "last", card=model_card(config, parameters, {}, command, trainer.taught_by)
            )
    # Other machines do not see rank 0's folder.
    best = DualEncoder.from_pretrained(folder / "model").to(trainer.device) if ranks.first else state.model
    ranks.as_first_(best.state_dict().values())
    evaluation = trainer.evaluate(best, "fp32")
    # A finished run that is resumed has been mixed already.
    share = ranks.from_first(lambda: model_folder.summarize(folder / "model")["metrics"].get(TRAINED_SHARE))
    if config.train.wise_ft and share is None:
        best, evaluation, share = _mixed(trainer, best, evaluation, say)
    if ranks.first:
        trainer.save_best(best.cpu(), evaluation.metrics, command, share)
        _report(trainer, evaluation, command)
        if state.skipped:
            say(f"steps that changed nothing, for they gave no finite numbers: {state.skipped:,}")
        if trainer.quarantine:
            say(trainer.quarantine.summary())
    trainer.frozen.clear()
    return evaluation


def _mixed(
    trainer: Trainer, best: DualEncoder, evaluation: Evaluation, say: Say
) -> tuple[DualEncoder, Evaluation, float]:
    """The best mixture of the run's best model with the one it started from, what it reaches, and the trained share."""
    train = trainer.config.train
    measured: dict[int, Evaluation] = {}

    def measure(model: DualEncoder) -> dict[str, float]:
        measured[id(model)] = evaluation if model is best else trainer.evaluate(model, "fp32")
        return measured[id(model)].metrics

    start = start_model(train.start_from, trainer.config.model).to(trainer.device)
    mixture = best_mixture(start, best, train.wise_ft, measure)
    tried = ", ".join(f"{share:g}: {metrics['rsum']:.1f}" for share, metrics in sorted(mixture.metrics.items()))
    say(f"share of the trained weights in the model: {mixture.share:g} (rsum by share: {tried})")
    return mixture.model, measured[id(mixture.model)], mixture.share


def _report(trainer: Trainer, evaluation: Evaluation, command: str) -> None:
    """Writes the page of the run."""
    config = trainer.config
    state, folder, parameters = trainer.state, config.output, trainer.state.model.count_parameters()
    last_loss = loss_in_stage(config, stage_at(config.train.stages, state.epoch - 1).stage)
    chance = chance_loss(last_loss, trainer.loader.batch_size, config.data.captions_per_image)
    own = evaluation.image_rank_N, evaluation.text_rank_M, evaluation.caption_image_M
    write_report(
        folder / "report.html",
        evaluation,
        title=f"cliplet: {config.name}",
        history=read_log(folder / "log.jsonl"),
        intervals=bootstrap_intervals(*own),
        config_text=to_yaml(config),
        facts={
            "data": f"{config.data.path}: trained on {config.data.train_split} "
            f"({len(trainer.train_records):,} pictures), measured on {config.data.val_split}",
            "model": f"{parameters / 1e6:.1f} M parameters, best epoch {state.best['epoch']} of {trainer.epochs}",
            "computed on": f"{trainer.device}, {trainer.precision}",
            "left out": f"{len(trainer.quarantine):,} bad records or files",
            "command": command or "cliplet.train(config)",
            "seed": str(config.train.seed),
        },
        chance=None if is_taught(last_loss) else chance,  # the curve has the teachers' terms in it
    )
