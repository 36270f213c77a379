"""The page for everybody: text that can be read, a name for each control, keys and fingers instead of a mouse."""

from pathlib import Path

import pytest
from browsing import Open, check_values, wait_for
from playwright.sync_api import Page

CONTRAST = 4.5  # of text, by WCAG 2.2, level AA

# How many texts, inputs and icons are seen, and [ratio, text] of those with less contrast to the colour behind them.
FAINT = """least => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], under) => [r, g, b].map((level, i) => a * level + (1 - a) * under[i]);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const colour = parse(getComputedStyle(element).backgroundColor);
    return (colour[3] ?? 1) === 1 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
  };
  const light = (colour) => {
    const linear = (s) => (s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((level) => linear(level / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!(own || element.matches("input, svg")) || !element.checkVisibility() || element.disabled) continue;
    const back = behind(element);
    const [a, b] = [light(over(parse(getComputedStyle(element).color), back)), light(back)].sort((p, q) => q - p);
    found.push([(a + 0.05) / (b + 0.05), element.textContent.trim() || element.id]);
  }
  return [found.length, found.filter(([ratio]) => ratio < least)];
}"""


# What has the focus, its name, and its outline; a radio button is shown by its label.
FOCUS = """() => {
  const { activeElement: at } = document;
  if (at === document.body) return null;
  const shows = at.type === "radio" ? at.nextElementSibling : at;
  const name = at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.textContent;
  return [at.id || at.value || at.className || name, name.trim(), getComputedStyle(shows).outlineStyle];
}"""


@pytest.mark.parametrize("shade", ["light", "dark"])
def test_every_text_has_enough_contrast(shade: str, opened: Open, output: Path) -> None:
    page = opened(output, show="frame=7&point=3,4")
    page.emulate_media(color_scheme=shade)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    page.wait_for_selector(f"html[data-shade={shade}][data-drawn=true]")
    check_values(page, output, 7)
    page.keyboard.press("?")
    texts, faint = page.evaluate(FAINT, CONTRAST)
    assert texts > 100
    assert faint == []


def test_the_tab_key_reaches_every_control_and_shows_where_it_is(opened: Open, output: Path) -> None:
    page = opened(output, show="frame=7")
    check_values(page, output, 7)
    page.keyboard.press("Tab")
    reached = []
    while (control := page.evaluate(FOCUS)) not in (None, *reached):
        reached.append(control)
        page.keyboard.press("Tab")
    assert [at for at, name, outline in reached if not name or outline == "none"] == []
    controls = page.locator(":is(button, input, select)[id]").evaluate_all("all => all.map(({ id }) => id)")
    hidden = {"field", "from-row", "from-col", "to-row", "to-col"}  # one field; Profile is closed
    assert set(controls) - {at for at, _, _ in reached} == hidden


def zoom_of(page: Page) -> dict[str, float]:
    return dict(page.evaluate("gsio.state().zoom"))


def test_two_fingers_a_wheel_and_keys_zoom_and_move(opened: Open, output: Path) -> None:
    page = opened(output, show="frame=7")
    check_values(page, output, 7)
    box = page.locator(".stage").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = page.context.new_cdp_session(page)
    for kind, away in (("Start", 50), ("Move", 75), ("Move", 100), ("End", None)):
        places = [] if away is None else [{"x": x - away, "y": y, "id": 0}, {"x": x + away, "y": y, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": places})
    assert zoom_of(page) == pytest.approx({"factor": 2, "x": 0.5, "y": 0.5}, abs=0.02)
    assert page.evaluate("gsio.state().point") is None  # two fingers are no click
    page.keyboard.press("l")
    page.keyboard.press("i")
    moved = zoom_of(page)
    assert moved["factor"] == pytest.approx(2, abs=0.02)
    assert moved["x"] > 0.55
    assert moved["y"] < 0.45
    page.mouse.move(x, y)
    page.mouse.wheel(0, -200)
    page.wait_for_function("gsio.state().zoom.factor > 2.5")
    page.mouse.wheel(0, 2000)
    page.wait_for_function("gsio.state().zoom.factor === 1")


def test_the_value_at_the_chosen_point_is_shown_without_a_pointer(opened: Open, output: Path) -> None:
    page = opened(output, show="frame=7&point=24,32")
    check_values(page, output, 7)
    shown = page.locator(".readout b").inner_text()
    assert float(shown) == pytest.approx(page.evaluate("gsio.value(24, 32).value"), rel=1e-7)
    page.keyboard.press("Escape")
    wait_for(page, "state.point === null")
    assert page.locator(".readout").is_hidden()
