// Tells above the results how many there are, or what is wrong and what to do about it; knows no search.

import { byId, el } from "./elements.js";

export const busy = (on) => { byId("progress").hidden = !on; byId("grid").setAttribute("aria-busy", on); };

/** Show a notice, with what to do about it, or none. */
export function tell(title, detailed = "", ...actions) {
  byId("notice").hidden = title === null;
  byId("notice").replaceChildren(...(title === null ? [] : [el("strong", {}, title), el("span", {}, detailed), ...actions]));
}

export const tellCount = (text) => { byId("count").textContent = text; };
export const button = (label, click) => el("button", { type: "button", click }, label);
