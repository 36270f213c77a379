// Light and dark: as the system has it, or as the person chose.

import { $, state } from "./dom.js";
import { repaintPlots } from "./plots.js";
import { refresh } from "./view.js";

const CHOICES = ["auto", "light", "dark"];
const WORDS = { auto: "as the system has them", light: "light", dark: "dark" };
const KEY = "gsio-theme";

/** Return or keep a choice; a browser that keeps nothing starts with the system's again. */
function kept(value) {
  try {
    if (value === undefined) return localStorage.getItem(KEY);
    localStorage.setItem(KEY, value);
  } catch {
    // The choice lasts as long as the page.
  }
  return value;
}

export function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let choice = CHOICES.includes(kept()) ? kept() : "auto";
  const show = () => {
    state.theme = choice;
    state.shade = choice === "dark" || (choice === "auto" && dark.matches) ? "dark" : "light";
    $("#theme").setAttribute("aria-label", `Colours of the page: ${WORDS[choice]}`);
    $("#theme").title = `Colours of the page: ${WORDS[choice]}`;
    repaintPlots();
    refresh("theme");
  };
  dark.addEventListener("change", show);
  $("#theme").addEventListener("click", () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length];
    kept(choice);
    show();
  });
  show();
}
