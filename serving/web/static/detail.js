// One image with all that is known about it, in a dialog. Knows no query.

import { image, imagePath, showPicture } from "./api.js";
import { el, icon, ICONS, oneLine, percent } from "./elements.js";
import { valueOf } from "./filters.js";

/** `act.close()`, `act.step(±1)`, `act.more(hit)` and `act.less(hit)` are called for what the user does. */
export class Detail {
  #dialog;
  #act;
  #hit = null;

  constructor(dialog, act) {
    this.#dialog = dialog;
    this.#act = act;
    dialog.addEventListener("cancel", (event) => { event.preventDefault(); act.close(); });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) act.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.#hit) return;
      if (event.key === "ArrowRight") act.step(1);
      else if (event.key === "ArrowLeft") act.step(-1);
      else if (event.key === "m") act.more(this.#hit);
      else if (event.key === "l") act.less(this.#hit);
      else return;
      event.preventDefault();
    });
  }

  get id() { return this.#dialog.open ? this.#hit?.imageId : null; }

  /** Show a hit; `place` and `all` tell where among the results it stands, where it does. */
  show(hit, place = null, all = 0) {
    this.#hit = hit;
    const title = oneLine(hit.captions?.[0] || hit.imageId, 300);
    const picture = el("img", { alt: title });
    const frame = el("div", { className: "frame" }, picture);
    if (hit.picture) {
      picture.width = hit.picture.width;
      picture.height = hit.picture.height;
    }
    picture.addEventListener("error", () => {
      frame.replaceChildren(el("p", { className: "none" }, "The picture itself is not at hand."));
    });
    showPicture(picture, hit.picture?.content ?? `${imagePath(hit.imageId)}/content`);
    const button = (label, path, click, extra = {}) => el("button", { type: "button", className: "icon", "aria-label": label, title: label, click, ...extra }, icon(path));
    const steps = place === null ? [] : [
      button("The one before", ICONS.back, () => this.#act.step(-1), { disabled: place === 0 }),
      button("The next one", ICONS.on, () => this.#act.step(1), { disabled: place === all - 1 }),
    ];
    this.#dialog.replaceChildren(
      el("div", { className: "head" }, ...steps, button("Close", ICONS.cross, () => this.#act.close())),
      frame,
      el("div", { className: "facts" },
        el("h2", { id: "detail-title", dir: "auto" }, title),
        ...(hit.captions ?? []).slice(1).map((caption) => el("p", { dir: "auto" }, oneLine(caption, 10_000))),
        el("div", { className: "buttons" },
          el("button", { type: "button", click: () => this.#act.more(hit) }, icon(ICONS.plus), "More like this"),
          el("button", { type: "button", click: () => this.#act.less(hit) }, icon(ICONS.minus), "Less like this")),
        facts(hit)));
    if (!this.#dialog.open) {
      this.#dialog.showModal();
      this.#dialog.focus(); // not a button of it, which would look pressed
    }
    this.#dialog.scrollTop = 0;
  }

  /** Show an image that is not among the results; throws what the gateway says. */
  async load(id) {
    this.show(await image(id));
  }

  close() {
    this.#hit = null;
    if (this.#dialog.open) this.#dialog.close();
    this.#dialog.replaceChildren();
  }
}

function facts(hit) {
  const rows = [["id", hit.imageId]];
  if (hit.score !== undefined) rows.push(["score", hit.score.toFixed(3)]);
  if (hit.probability !== undefined) rows.push(["probability", percent(hit.probability)]);
  if (hit.picture) rows.push(["size", `${hit.picture.width} × ${hit.picture.height}`]);
  for (const [name, message] of Object.entries(hit.attributes ?? {}).sort(([a], [b]) => (a < b ? -1 : 1))) {
    const [kind, value] = valueOf(message);
    const told = kind === "strings" ? value.join(", ") : kind === "bool" ? (value ? "yes" : "no") : kind === "timestamp" ? new Date(value).toLocaleString() : value;
    rows.push([name, told]);
  }
  return el("dl", {}, ...rows.flatMap(([name, value]) => [
    el("dt", { dir: "auto" }, oneLine(name, 60)),
    el("dd", { dir: "auto" }, oneLine(value, 2_000)),
  ]));
}
