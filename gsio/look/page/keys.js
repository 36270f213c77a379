// The keyboard: every key has a button or an input that does the same.

import { $ } from "./dom.js";
import { set } from "./view.js";

const TYPING = "input[type=text], input[type=number], select, textarea";
const PRESSING = "button, summary, a, input[type=radio]";

export function listenToKeys({ player, zoom, move, fit, save, togglePanel }) {
  const help = $("#help");
  const actions = {
    " ": () => player.toggle(),
    ArrowLeft: (event) => player.step(event.shiftKey ? -10 : -1),
    ArrowRight: (event) => player.step(event.shiftKey ? 10 : 1),
    Home: () => player.go(0),
    End: () => player.go(player.last),
    "+": () => zoom(1.25), "=": () => zoom(1.25),
    "-": () => zoom(0.8), "−": () => zoom(0.8),
    i: () => move(0, -1), j: () => move(-1, 0), k: () => move(0, 1), l: () => move(1, 0),
    0: fit, f: () => player.follow(), s: save, p: togglePanel, "?": () => help.showModal(),
    Escape: () => set({ point: null, line: null, mode: "move" }),
  };
  $("#help-open").addEventListener("click", () => help.showModal());
  help.addEventListener("click", (event) => event.target === help && help.close());
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (target.matches(TYPING)) {
      if (key === "Escape" || key === "Enter") target.blur();
      return;
    }
    if (key === " " && target.matches(PRESSING)) return; // the browser presses the button
    if (key.startsWith("Arrow") && target.matches("input[type=radio]")) return; // it chooses among the buttons
    if (/^(Arrow|Page|Home|End)/.test(key) && target.matches("#axes input")) return; // it moves the slider
    const action = actions[key];
    if (!action) return;
    event.preventDefault();
    action(event);
  });
  // A button that the pointer pressed gives the keys back to the picture.
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest?.("button")?.blur();
  });
}
