// The picture of the viewer: as large as it fits, or at full size, to be moved about; and swiping.

const LARGER = 2.5; // a small picture is shown up to this much larger than it is
const SWIPE = 48; // pixels

export class Zoom {
  /**
   * @param {HTMLElement} stage what scrolls
   * @param {HTMLImageElement} image
   * @param {{changed: (zoomed: boolean) => void, swiped: (step: 1|-1) => void}} told
   */
  constructor(stage, image, told) {
    this.stage = stage;
    this.image = image;
    this.told = told;
    this.width = 1;
    this.height = 1;
    this.zoomed = false;
    /** @type {{x: number, y: number, left: number, top: number, moved: boolean}|null} */
    this.held = null;
    new ResizeObserver(() => this.fit()).observe(stage);
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    stage.addEventListener("pointerup", (event) => this.up(event));
    stage.addEventListener("pointercancel", () => (this.held = null));
  }

  /** Another picture. @param {number} width @param {number} height pixels that it has */
  set(width, height) {
    this.width = Math.max(1, width);
    this.height = Math.max(1, height);
    this.toggle(false);
  }

  /** @returns {number} the size at which it fits, as a part of its own */
  get fitting() {
    const { clientWidth, clientHeight } = this.stage;
    return Math.min(clientWidth / this.width, clientHeight / this.height, LARGER);
  }

  fit() {
    const scale = this.zoomed ? this.full : this.fitting;
    this.image.style.width = `${Math.max(1, Math.round(this.width * scale))}px`;
    this.image.style.height = `${Math.max(1, Math.round(this.height * scale))}px`;
  }

  /** A pixel of the picture for a pixel of the page; more, where that would be no larger. */
  get full() {
    return Math.max(1, this.fitting * 1.6);
  }

  /**
   * @param {boolean} [zoomed]
   * @param {{x: number, y: number}} [at] the place of the window that stays where it is
   */
  toggle(zoomed = !this.zoomed, at) {
    const box = this.image.getBoundingClientRect();
    const frame = this.stage.getBoundingClientRect();
    const point = at ?? { x: frame.left + frame.width / 2, y: frame.top + frame.height / 2 };
    const x = box.width ? (point.x - box.left) / box.width : 0.5;
    const y = box.height ? (point.y - box.top) / box.height : 0.5;
    this.zoomed = zoomed;
    this.stage.classList.toggle("zoomed", zoomed);
    this.fit();
    if (zoomed) {
      this.stage.scrollLeft = x * this.image.offsetWidth - (point.x - frame.left);
      this.stage.scrollTop = y * this.image.offsetHeight - (point.y - frame.top);
    }
    this.told.changed(zoomed);
  }

  /** Moves what is seen of a zoomed picture. @param {string} key an arrow */
  nudge(key) {
    const step = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] }[key] ?? [0, 0];
    this.stage.scrollBy({ left: step[0], top: step[1], behavior: "instant" });
  }

  down(event) {
    if (event.button || !event.isPrimary) {
      this.held = null; // a second finger is no swipe
      return;
    }
    const { scrollLeft: left, scrollTop: top } = this.stage;
    this.held = { x: event.clientX, y: event.clientY, left, top, moved: false };
  }

  move(event) {
    if (!this.held) return;
    const x = event.clientX - this.held.x;
    const y = event.clientY - this.held.y;
    if (Math.hypot(x, y) > 5) this.held.moved = true;
    if (!this.zoomed || event.pointerType !== "mouse") return; // fingers scroll by themselves
    this.stage.scrollLeft = this.held.left - x;
    this.stage.scrollTop = this.held.top - y;
  }

  up(event) {
    const { held } = this;
    this.held = null;
    if (!held) return;
    const x = event.clientX - held.x;
    const y = event.clientY - held.y;
    if (!this.zoomed && Math.abs(x) > SWIPE && Math.abs(x) > 1.5 * Math.abs(y)) this.told.swiped(x < 0 ? 1 : -1);
    else if (!held.moved && event.target === this.image) this.toggle(undefined, { x: event.clientX, y: event.clientY });
  }
}
