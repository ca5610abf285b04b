// Thousands of results in rows of equal height, of which only those near the screen have elements; these are used again
// and again. Knows no query.

import { showPicture } from "./api.js";
import { el, icon, ICONS, oneLine, percent } from "./elements.js";

const GAP = 8;
const NARROWEST = 0.45; // of width to height: longer pictures are cut to it
const WIDEST = 3;
const CUT_HEIGHT = 48; // the line where confident matches end
const AHEAD = 1; // screens above and below that have elements too

/**
 * `act.open(place)`, `act.more(place)` and `act.less(place)` are called for results, `act.end()` when the last ones come
 * near, `act.address(hit)` gives the address of one.
 */
export class Grid {
  #list;
  #act;
  #hits = [];
  #boxes = []; // {left, top, width, height, row} of each hit
  #rows = []; // the places of the first hits of rows
  #cut = null; // {after, text}
  #cutTop = null;
  #cutLine = el("li", { className: "cut" }, el("span"));
  #shown = new Map(); // tiles by place
  #free = [];
  #current = 0; // the place that Tab leads to
  #width = 0;
  #height = 0;

  constructor(list, act) {
    this.#list = list;
    this.#act = act;
    list.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("scroll", () => this.render(), { passive: true });
    new ResizeObserver(() => this.#resized()).observe(list);
  }

  get hits() { return this.#hits; }

  /** Show other hits from the top. `cut` tells after how many of them confidence ends, and what to say there. */
  show(hits, cut) {
    this.#hits = hits;
    this.#cut = cut;
    this.#current = 0;
    for (const place of [...this.#shown.keys()]) this.#release(place);
    this.#layOut();
    this.render(0);
    requestAnimationFrame(() => setTimeout(() => this.render())); // once these are painted
  }

  /** Add hits at the end. */
  add(hits) {
    this.#hits.push(...hits);
    this.#layOut();
    this.render();
  }

  /** Move the focus to a hit, scrolling where needed. */
  focus(place) {
    if (!this.#hits.length) return;
    this.#current = Math.max(0, Math.min(place, this.#hits.length - 1));
    const box = this.#boxes[this.#current];
    const top = this.#list.getBoundingClientRect().top + box.top;
    const above = document.querySelector("header").getBoundingClientRect().bottom + GAP;
    if (top < above) scrollBy(0, top - above);
    else if (top + box.height > innerHeight) scrollBy(0, top + box.height - innerHeight + GAP);
    this.render();
    this.#shown.get(this.#current)?.link.focus({ preventScroll: true });
  }

  /** Make elements for what is on the screen and `ahead` screens around it, and take those of the rest for it. */
  render(ahead = AHEAD) {
    const offset = this.#list.getBoundingClientRect().top;
    const from = -offset - ahead * innerHeight;
    const to = -offset + (1 + ahead) * innerHeight;
    const wanted = [];
    for (let row = this.#rowAt(from); row < this.#rows.length && this.#boxes[this.#rows[row]].top < to; row++) {
      const end = this.#rows[row + 1] ?? this.#hits.length;
      for (let place = this.#rows[row]; place < end; place++) wanted.push(place);
    }
    for (const place of [...this.#shown.keys()]) {
      if (place >= wanted[0] && place <= wanted.at(-1)) continue;
      if (this.#shown.get(place).item.contains(document.activeElement)) wanted.push(place);
      else this.#release(place);
    }
    // Elements stand in the order of places, for those who read them one after the other.
    let after = null;
    const put = (item) => {
      const next = after ? after.nextSibling : this.#list.firstChild;
      if (next !== item) this.#list.insertBefore(item, next);
      after = item;
    };
    let cut = false;
    for (const place of wanted.sort((a, b) => a - b)) {
      if (place === this.#cut?.after) {
        put(this.#cutLine);
        cut = true;
      }
      put(this.#fill(place).item);
    }
    if (!cut) this.#cutLine.remove();
    if (this.#hits.length && to > this.#height) this.#act.end();
  }

  #resized() {
    if (this.#list.clientWidth === this.#width) return;
    this.#layOut();
    this.render();
  }

  /** Boxes whose rows fill the width, by the shapes of the pictures alone, so that nothing moves when these come. */
  #layOut() {
    const width = this.#width = this.#list.clientWidth;
    const target = Math.max(120, Math.min(220, width / 4.5));
    this.#boxes = [];
    this.#rows = [];
    this.#cutTop = null;
    let top = 0;
    let row = [];
    let shapes = 0;
    const close = (height) => {
      let left = 0;
      this.#rows.push(this.#boxes.length);
      for (const shape of row) {
        this.#boxes.push({ left, top, width: shape * height, height, row: this.#rows.length - 1 });
        left += shape * height + GAP;
      }
      top += height + GAP;
      row = [];
      shapes = 0;
    };
    const draw = () => {
      this.#cutTop = top;
      top += CUT_HEIGHT + GAP;
    };
    if (this.#cut?.after === 0) draw();
    this.#hits.forEach((hit, place) => {
      const { width: w = 1, height: h = 1 } = hit.picture ?? {};
      const shape = Math.max(NARROWEST, Math.min(WIDEST, w / h));
      row.push(shape);
      shapes += shape;
      const height = (width - GAP * (row.length - 1)) / shapes;
      if (height <= target) close(height);
      if (this.#cut?.after === place + 1) {
        if (row.length) close(this.#lastHeight(target));
        draw();
      }
    });
    if (row.length) close(this.#lastHeight(target));
    this.#height = top;
    this.#list.style.height = `${top}px`;
    if (this.#cut && this.#cutTop !== null) {
      this.#cutLine.firstChild.textContent = this.#cut.text;
      this.#cutLine.style.transform = `translateY(${this.#cutTop}px)`;
    }
    for (const [place, tile] of this.#shown) this.#place(tile, this.#boxes[place]);
  }

  /** The height of a row that is not full: that of the one above. */
  #lastHeight(target) {
    return this.#boxes.length ? this.#boxes.at(-1).height : target;
  }

  /** The last row that begins above `top`, or the first. */
  #rowAt(top) {
    let low = 0;
    let high = this.#rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#boxes[this.#rows[middle]].top <= top) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #fill(place) {
    let tile = this.#shown.get(place);
    const hit = this.#hits[place];
    if (!tile) {
      tile = this.#free.pop() ?? this.#make();
      this.#shown.set(place, tile);
      tile.place = place;
      this.#describe(tile, hit);
      this.#place(tile, this.#boxes[place]);
    }
    const now = place === this.#current;
    for (const control of [tile.link, tile.more, tile.less]) control.tabIndex = now ? 0 : -1;
    return tile;
  }

  #make() {
    const img = el("img", { decoding: "async", draggable: false });
    const link = el("a", { className: "open" }, img, el("span", { className: "words" }));
    const bar = el("i");
    const more = el("button", { type: "button", title: "More like this" }, icon(ICONS.plus));
    const less = el("button", { type: "button", title: "Less like this" }, icon(ICONS.minus));
    const item = el("li", { className: "tile" }, link, el("span", { className: "score" }, bar), el("span", { className: "acts" }, more, less));
    const tile = { item, link, img, words: link.lastChild, bar, more, less, place: 0 };
    img.addEventListener("load", () => item.classList.add("loaded"));
    img.addEventListener("error", () => item.classList.add("missing"));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
      event.preventDefault();
      this.#act.open(tile.place);
    });
    link.addEventListener("focus", () => this.#makeCurrent(tile.place));
    more.addEventListener("click", () => this.#act.more(tile.place));
    less.addEventListener("click", () => this.#act.less(tile.place));
    return tile;
  }

  #describe(tile, hit) {
    const caption = oneLine(hit.captions?.[0] || hit.imageId);
    const sure = hit.probability === undefined ? `score ${hit.score.toFixed(2)}` : percent(hit.probability);
    tile.item.className = "tile";
    tile.item.setAttribute("aria-posinset", tile.place + 1);
    tile.item.setAttribute("aria-setsize", -1);
    tile.item.dataset.id = hit.imageId;
    tile.link.href = this.#act.address(hit);
    tile.link.setAttribute("aria-label", `${caption}, ${sure}`);
    tile.link.title = caption;
    tile.img.alt = caption;
    tile.words.textContent = caption;
    tile.more.setAttribute("aria-label", `More like ${caption}`);
    tile.less.setAttribute("aria-label", `Less like ${caption}`);
    tile.bar.style.width = `${Math.round(100 * this.#strength(hit))}%`;
    if (hit.picture) {
      showPicture(tile.img, hit.picture.thumbnail);
    } else {
      tile.img.removeAttribute("src");
      tile.item.classList.add("missing");
    }
  }

  /** How long a hit's bar is, 0 to 1: its score beside the best one. */
  #strength(hit) {
    const best = Math.max(this.#hits[0].score, 1e-6);
    return Math.max(0.02, Math.min(1, hit.score / best));
  }

  #place(tile, box) {
    tile.item.style.transform = `translate(${box.left}px, ${box.top}px)`;
    tile.item.style.width = `${box.width}px`;
    tile.item.style.height = `${box.height}px`;
  }

  #release(place) {
    const tile = this.#shown.get(place);
    this.#shown.delete(place);
    tile.item.remove();
    tile.img.removeAttribute("src"); // a picture that has not come is not waited for
    delete tile.img.dataset.path;
    this.#free.push(tile);
  }

  #makeCurrent(place) {
    const former = this.#shown.get(this.#current);
    this.#current = place;
    if (former) this.#fill(former.place);
    if (this.#shown.has(place)) this.#fill(place);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.#hits.length) return;
    const place = this.#current;
    const steps = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: this.#hits.length - 1 };
    if (event.key in steps) this.focus(steps[event.key]);
    else if (event.key === "ArrowDown") this.focus(this.#beside(place, 1));
    else if (event.key === "ArrowUp" && this.#boxes[place].row === 0) document.getElementById("text").focus();
    else if (event.key === "ArrowUp") this.focus(this.#beside(place, -1));
    else if (event.key === "m") this.#act.more(place);
    else if (event.key === "l") this.#act.less(place);
    else return;
    event.preventDefault();
  }

  /** The hit of the row above or below that lies nearest. */
  #beside(place, step) {
    const { row, left, width } = this.#boxes[place];
    const first = this.#rows[row + step];
    if (first === undefined) return step > 0 ? this.#hits.length - 1 : 0;
    const end = this.#rows[row + step + 1] ?? this.#hits.length;
    const away = (other) => Math.abs(this.#boxes[other].left + this.#boxes[other].width / 2 - left - width / 2);
    let best = first;
    for (let other = first; other < end; other++) if (away(other) < away(best)) best = other;
    return best;
  }
}
