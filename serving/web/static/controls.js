// Listens to the field, the buttons and the keys at the top of the page, and tells what they mean; knows no search.

import { byId } from "./elements.js";

const TYPING = 120; // milliseconds without a key before a search

/**
 * `on` is told of what is done: `typed(text)` at each key, `paused()` a little later, `settled()` when the field is left,
 * `entered(text)`, `escaped()`, `beginAgain()`, `picked(file)`, `filters()` before these are shown, `down()` from the field
 * to the results, which tells whether there are any, and `toField()` back to it from anywhere.
 */
export function listenToControls(on) {
  listenToField(on);
  byId("clear").addEventListener("click", on.beginAgain);
  document.querySelector(".brand").addEventListener("click", (event) => { event.preventDefault(); on.beginAgain(); });
  byId("pick").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", () => {
    const [file] = byId("file").files;
    byId("file").value = "";
    if (file) on.picked(file);
  });
  byId("filter-toggle").addEventListener("click", () => {
    const shown = byId("filters").hidden;
    if (shown) on.filters();
    byId("filters").hidden = !shown;
    byId("filter-toggle").setAttribute("aria-expanded", shown);
  });
  byId("theme").addEventListener("click", changeTheme);
  addEventListener("keydown", (event) => {
    const writing = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), textarea");
    if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      on.toField();
      byId("text").focus();
      byId("text").select();
    } else if (event.key === "Escape" && !writing && !byId("detail").open) {
      byId("text").focus();
    }
  });
}

function listenToField(on) {
  const text = byId("text");
  let typing = 0;
  text.addEventListener("input", () => {
    clearTimeout(typing);
    on.typed(text.value);
    typing = setTimeout(on.paused, TYPING);
  });
  text.addEventListener("change", on.settled);
  text.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && on.down()) event.preventDefault();
    if (event.key === "Escape") on.escaped();
  });
  byId("search").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    on.entered(text.value);
  });
}

function changeTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* storage may be blocked */ }
}
