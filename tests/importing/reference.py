"""The five systems in plain torch, written from their description (section and table names there) and from nothing of
cliplet: modules whose state dicts have the names of the five projects, with their features and their checkpoints.

Two things differ from the projects, as cliplet wants it: padding never changes a text's feature, so the ConvFFN head
masks padding; and where padding cannot be masked (the Linformer) texts come without any.
"""

import timm
import torch
from linformer import Linformer
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, ViTConfig, ViTModel


def bert(vocabulary, layers=2, width=32, positions=40, heads=4, pooler=True):
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=positions,
    )
    return BertModel(config, add_pooling_layer=pooler)


def roberta(vocabulary, layers=2, width=32, positions=40, heads=4, pooler=True):
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=positions + 2,  # positions are counted from the padding's number, 1, plus 1
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return RobertaModel(config, add_pooling_layer=pooler)


def vit(image_size=32, patch=16, layers=2, width=64, heads=4, pooler=True):
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )
    return ViTModel(config, add_pooling_layer=pooler)


def resnet(layers, bottleneck=False):
    """torchvision's, without its classifier."""
    model = ResNet(Bottleneck if bottleneck else BasicBlock, layers)
    model.fc = nn.Identity()
    return model


def vision_transformer(image_size=224, patch=16, layers=12, width=768, heads=12, hidden=3072):
    """torchvision's, without its classifier."""
    model = VisionTransformer(image_size, patch, layers, heads, width, hidden)
    model.heads = nn.Identity()
    return model


def timm_model(name):
    size = {"img_size": 224} if "vit" in name and not name.startswith("tiny") else {}
    return timm.create_model(name, num_classes=0, **size)


def masked_mean(states_BLD, mask_BL):
    weight_BL1 = mask_BL.unsqueeze(-1).to(states_BLD)
    return (states_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)


def perturb(module, seed=0):
    """Moves everything off its first value, so that no part is an identity, a zero or like its neighbour."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point() or not tensor.ndim:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.mul_((0.3 * noise).exp())
            else:
                tensor.add_(noise * (0.2 if tensor.ndim == 1 else 0.7 * tensor[0].numel() ** -0.5))
    return module.eval()


def optimizer_state(model):
    """The state of an AdamW after one step that moved nothing."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer.state_dict()


class Reference(nn.Module):
    """Unit features of both sides, and what multiplies their products."""

    optimizer = ""  # under which name a checkpoint holds the optimizer's state, if it does

    def image(self, pixels):
        raise NotImplementedError

    def text(self, ids, mask):
        raise NotImplementedError

    def scale(self, image_BD, text_BD):
        raise NotImplementedError

    def content(self):
        """What a checkpoint of the system holds, but for the optimizer's state."""
        raise NotImplementedError

    def save(self, path):
        optimizer = {self.optimizer: optimizer_state(self)} if self.optimizer else {}
        torch.save({**self.content(), **optimizer}, path)
        return path


# 1. TinyViT and MiniLM with a ConvFFN text head


class ConvFfn(nn.Module):
    def __init__(self, width, dim, mult, kernel):
        super().__init__()
        self.pre = nn.Linear(width, mult * dim)
        self.dw = nn.Conv1d(mult * dim, mult * dim, kernel, padding=kernel // 2, groups=mult * dim)
        self.drop = nn.Dropout(0.1)
        self.proj = nn.Linear(mult * dim, dim)
        self.ln = nn.LayerNorm(dim)

    def forward(self, states_BLC, mask_BL):
        hidden_BLH = self.pre(states_BLC) * mask_BL.unsqueeze(-1)
        hidden_BLH = self.dw(hidden_BLH.transpose(1, 2)).transpose(1, 2)
        return self.ln(self.proj(masked_mean(F.gelu(self.drop(hidden_BLH)), mask_BL)))


class System1(Reference):
    def __init__(self, tower, text, dim=16, mult=2, kernel=3):
        super().__init__()
        self.dim, self.mult, self.kernel = dim, mult, kernel
        self.vision = timm_model(tower)
        self.text_ = text
        self.v_proj = nn.Sequential(nn.Linear(self.vision.num_features, dim), nn.LayerNorm(dim))
        self.t_proj = ConvFfn(text.config.hidden_size, dim, mult, kernel)
        self.logit_scale = nn.Parameter(torch.tensor(3.1))

    def image(self, pixels):
        return F.normalize(self.v_proj(self.vision(pixels)), dim=-1)

    def text(self, ids, mask):
        states = self.text_(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.t_proj(states, mask), dim=-1)

    def scale(self, image_BD, text_BD):
        return self.logit_scale.clamp(-2.5, 5.5).exp().clamp(1e-3, 100.0)

    def content(self):
        return {
            "recipe": "tinyvit11m_minilm_convffn",
            "epoch": 30,
            # "text" is the method's name here, so that the tower has a line below its own
            "student_state": {name.replace("text_.", "text.", 1): tensor for name, tensor in self.state_dict().items()},
            "embed_dim": self.dim,
            "convffn": {"hidden_mult": self.mult, "kernel": self.kernel, "dropout": 0.1},
            "caps_per_image": 2,
            "soft_i2t": True,
        }


# 2. ResNet-34 and Linformer with dynamic temperature


class ModelAndLinear(nn.Module):
    def __init__(self, model, width, dim):
        super().__init__()
        self.model = model
        self.projection = nn.Linear(width, dim)

    def forward(self, pixels):
        return self.projection(self.model(pixels))


class LinformerText(nn.Module):
    def __init__(self, vocabulary, dim, length, layers, heads, k, shared):
        super().__init__()
        self.token_emb = nn.Embedding(vocabulary, dim)
        self.pos_emb = nn.Embedding(length, dim)
        self.dropout = nn.Dropout(0.1)
        self.encoder = Linformer(
            dim=dim, seq_len=length, depth=layers, heads=heads, k=k, one_kv_head=shared, share_kv=shared
        )
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, ids):
        states = self.token_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.layer_norm(self.encoder(self.dropout(states)).mean(1))


class ResidualMlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        return self.norm(x + self.fc2(F.gelu(self.fc1(x))))


class DynamicTemperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, similarity_BB):
        return self.mlp(similarity_BB.var().reshape(1, 1)).exp().squeeze()


class System2(Reference):
    optimizer = "optimizer"

    def __init__(self, image, image_width, vocabulary, dim=32, length=12, layers=2, heads=4, k=8, shared=True):
        super().__init__()
        self.image_encoder = ModelAndLinear(image, image_width, dim)
        self.text_encoder = LinformerText(vocabulary, dim, length, layers, heads, k, shared)
        self.proj_mlp = ResidualMlp(dim)
        self.dyn_temp = DynamicTemperature()

    def image(self, pixels):
        return F.normalize(self.proj_mlp(self.image_encoder(pixels)), dim=-1)

    def text(self, ids, mask):
        assert mask.all(), "no padding here"
        return F.normalize(self.proj_mlp(self.text_encoder(ids)), dim=-1)

    def scale(self, image_BD, text_BD):
        return self.dyn_temp(image_BD @ text_BD.T)

    def content(self):
        parts = ("image_encoder", "text_encoder", "proj_mlp", "dyn_temp")
        states = {part: getattr(self, part).state_dict() for part in parts}
        return {"epoch": 50, **states}


# 3. ViT-Tiny and MiniLM


class System3(Reference):
    optimizer = "optimizer_state_dict"

    def __init__(self, tower, text, dim=16, hidden=24):
        super().__init__()
        self.text_encoder = text
        self.image_encoder = timm_model(tower)

        def head(width):
            return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, dim))

        self.image_proj = head(self.image_encoder.num_features)
        self.text_proj = head(text.config.hidden_size)
        self.logit_scale = nn.Parameter(torch.tensor(2.9))

    def image(self, pixels):
        features = self.image_encoder.forward_features(pixels)
        pooled = features.mean(1) if features.ndim == 3 else self.image_encoder(pixels)
        return F.normalize(self.image_proj(pooled), dim=-1)

    def text(self, ids, mask):
        states = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.text_proj(masked_mean(states, mask)), dim=-1)

    def scale(self, image_BD, text_BD):
        return self.logit_scale.exp()

    def content(self):
        return {
            "model_state_dict": self.state_dict(),
            "epoch": 3,
        }


# 4. ViT-S or ResNet-101 and RoBERTa


class ResidualHead(nn.Module):
    def __init__(self, width, dim):
        super().__init__()
        self.projection = nn.Linear(width, dim)
        self.fc = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.1)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.projection(x)
        return self.layer_norm(x + self.dropout(self.fc(F.gelu(x))))


class TowerAndHead(nn.Module):
    def __init__(self, model, head):
        super().__init__()
        self.model = model
        self.projection = head


class System4(Reference):
    def __init__(self, image, text, image_width, dim=16, plain=False):
        super().__init__()
        head = nn.Linear if plain else ResidualHead
        self.vision_encoder = TowerAndHead(image, head(image_width, dim))
        self.text_encoder = TowerAndHead(text, head(text.config.hidden_size, dim))
        self.temperature = nn.Parameter(torch.tensor(2.8))

    def image(self, pixels):
        features = self.vision_encoder.model(pixels)
        if not isinstance(features, torch.Tensor):  # of transformers: the class token
            features = features.last_hidden_state[:, 0]
        return F.normalize(self.vision_encoder.projection(features), dim=-1)

    def text(self, ids, mask):
        states = self.text_encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return F.normalize(self.text_encoder.projection(states[:, 0]), dim=-1)

    def scale(self, image_BD, text_BD):
        return self.temperature.exp()

    def content(self):
        return self.state_dict()


# 5. ViT-B/16 and a transformer from scratch

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")


def vocabulary_of(captions):
    """Word to number: the four special ones, then the lower-cased words, sorted."""
    words = sorted({word for caption in captions for word in caption.lower().split()})
    return {word: number for number, word in enumerate([*SPECIAL, *words])}


def ids_of(caption, vocabulary):
    words = [vocabulary.get(word, vocabulary["<unk>"]) for word in caption.lower().split()]
    return [vocabulary["<bos>"], *words, vocabulary["<eos>"]]


class BackboneAndLinear(nn.Module):
    def __init__(self, backbone, dim):
        super().__init__()
        self.backbone = backbone
        self.proj = nn.Linear(backbone.hidden_dim, dim)

    def forward(self, pixels):
        return self.proj(self.backbone(pixels))


class ScratchText(nn.Module):
    def __init__(self, vocabulary, dim, width, layers, heads, length):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.positional_embedding = nn.Parameter(torch.randn(1, length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, "gelu", batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, dim)

    def forward(self, ids, mask):
        states = self.token_embedding(ids) + self.positional_embedding[:, : ids.shape[1]]
        states = self.transformer(states, src_key_padding_mask=~mask.bool())
        return self.proj(self.ln_post(states)[:, 0])


class System5(Reference):
    optimizer = "optimizer_state"

    def __init__(self, backbone, vocabulary, dim=16, width=64, layers=2, heads=8, length=16):
        super().__init__()
        self.image_encoder = BackboneAndLinear(backbone, dim)
        self.text_encoder = ScratchText(vocabulary, dim, width, layers, heads, length)
        self.logit_scale = nn.Parameter(torch.tensor(2.7))

    def image(self, pixels):
        return F.normalize(self.image_encoder(pixels), dim=-1)

    def text(self, ids, mask):
        return F.normalize(self.text_encoder(ids, mask), dim=-1)

    def scale(self, image_BD, text_BD):
        return self.logit_scale.exp().clamp(max=100.0)

    def content(self):
        return {
            "epoch": 10,
            "model_state": self.state_dict(),
            "config": {"model": {"embed_dim": 256}, "train": {"lr": 1e-4, "batch_size": 128}},
        }
