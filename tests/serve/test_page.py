"""Tests of the page in a real browser, with the embedded model behind it."""

import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from running import demo_app, prompts, running

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium"),
]
STORY = "Tell me a story about Sana from Genoa and a drum."
PATIENCE = 60_000  # milliseconds that an answer may take on a busy machine

BAD_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parts = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => parts(colour).slice(0, 3).reduce((sum, part, place) => {
    const value = part / 255;
    const linear = value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    return sum + [0.2126, 0.7152, 0.0722][place] * linear;
  }, 0);
  const ground = (node) => {
    const own = getComputedStyle(node).backgroundColor;
    return parts(own)[3] || !node.parentElement ? own : ground(node.parentElement);
  };
  const contrast = (node) => {
    const style = getComputedStyle(node);
    const text = node instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [light(text), light(ground(node))].sort((one, other) => one - other);
    return (high + 0.05) / (low + 0.05);
  };
  const texts = [...document.body.querySelectorAll("*")].filter((node) => node.checkVisibility()
    && [...node.childNodes].some((each) => each.nodeType === 3 && each.data.trim()));
  return [texts.length, texts.filter((node) => contrast(node) < 4.5).map((node) => node.outerHTML)];
}"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, address, **options):
    """Open the page of a server; afterwards check what it logged and whom it asked."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    page, faults, asked = context.new_page(), [], []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.locator("#state")).to_contain_text("ready", timeout=PATIENCE)
    yield page
    context.close()
    assert faults == []
    assert asked
    assert [url for url in asked if not url.startswith(address)] == []


@pytest.fixture
def page(browser, address):
    with opened(browser, address) as page:
        yield page


def steps(page):
    return page.locator(".turn .step")


def say(page, text):
    """Send a message; return the JSON of the request."""
    page.fill("#prompt", text)
    with page.expect_request("**/v1/chat/completions") as request:
        page.press("#prompt", "Enter")
    expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)
    return request.value.post_data_json


def test_an_answer_grows_and_shows_its_steps(page):
    page.evaluate(
        "new MutationObserver(() => (window.sizes ??= []).push(document.querySelectorAll("
        "'.turn .step').length)).observe(document.body, {childList: true, subtree: true})"
    )
    say(page, STORY)
    sizes = page.evaluate("window.sizes")
    assert len(set(sizes)) > 2
    assert sizes == sorted(sizes)
    expect(page.locator(".note")).to_contain_text("tokens/step")
    assert page.locator(".steps").inner_text().startswith("One ")
    assert page.locator(".turn .accepted:not(:empty)").count() > 5
    expect(page.locator("#announcer")).to_contain_text("Answer: One ")
    label = page.locator("#lengths svg").get_attribute("aria-label")
    assert f"over {steps(page).count() - 1} steps" in label


def test_a_step_shows_refused_candidates_to_pointer_and_keyboard(page):
    say(page, STORY)
    refused = page.locator("#tip .mark.no")
    pointed = next(
        number
        for number in range(1, steps(page).count())
        if (steps(page).nth(number).hover() or True) and refused.count()
    )
    expect(page.locator("#tip")).to_contain_text(f"Step {pointed},")
    expect(page.locator("#tree-name")).to_contain_text(f"Step {pointed}:")
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    steps(page).first.focus()
    for _ in range(pointed):
        page.keyboard.press("ArrowRight")
    expect(steps(page).nth(pointed)).to_be_focused()
    expect(page.locator("#tip")).to_be_visible()
    assert refused.count()
    assert page.locator(".step[tabindex='0']").count() == 1


def test_the_switch_turns_medusa_off(page):
    assert say(page, STORY)["medusa"] == {"enabled": True, "steps": True}
    page.click("#clear")
    page.get_by_role("switch", name="Medusa").uncheck()
    assert say(page, STORY)["medusa"]["enabled"] is False
    expect(page.locator(".note")).to_contain_text("1.00 tokens/step")
    assert page.locator(".turn .accepted:not(:empty)").count() == 0


def test_a_race_gives_both_speeds(page):
    page.fill("#prompt", STORY)
    page.click("#race")
    expect(page.locator(".result")).to_contain_text("times as fast", timeout=PATIENCE)
    expect(page.locator(".result")).to_contain_text("The texts are the same.")
    expect(page.locator(".lanes .note").last).to_contain_text("1.00 tokens/step")
    expect(page.locator(".result")).to_be_in_viewport()


def test_settings_and_earlier_turns_are_sent(page):
    page.get_by_text("Settings", exact=True).click()
    given = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "seed": 3}
    for name, value in given.items():
        page.fill(f"#{name}", str(value))
    page.fill("#system", "Be brief.")
    body = say(page, STORY)
    assert {name: body[name] for name in given} == given
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    expect(page.locator(".note")).to_contain_text("7 tokens")
    roles = [each["role"] for each in say(page, STORY)["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    page.fill("#max_tokens", "0")
    page.fill("#prompt", STORY)
    page.click("#send")
    assert page.locator(".turn.user").count() == 2  # the invalid setting is not sent


def test_examples_fill_the_message_and_text_is_formatted(page):
    for example in page.locator(".example").all():
        example.click()
        message = page.input_value("#prompt")
        assert message == example.inner_text()
        assert "\n" not in message
    page.get_by_label("formatted text").check()
    page.click("#send")
    expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)
    expect(page.locator(".formatted")).to_be_visible()
    expect(page.locator(".steps")).to_be_hidden()
    assert page.locator(".formatted").inner_text().startswith("def ")


def test_stop_ends_an_answer(page):
    page.get_by_role("switch", name="Medusa").uncheck()
    page.fill("#prompt", STORY)
    page.evaluate(
        "new MutationObserver((_, own) => document.querySelector('.turn .step') && "
        "(own.disconnect(), document.querySelector('#stop').click()))"
        ".observe(document.querySelector('#log'), {childList: true, subtree: true})"
    )
    page.click("#send")
    expect(page.locator(".note")).to_contain_text("Stopped", timeout=PATIENCE)
    assert "day." not in page.locator(".steps").inner_text()
    expect(page.locator("#send")).to_be_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_contrast_with_their_ground(browser, address, scheme):
    with opened(browser, address, color_scheme=scheme) as page:
        say(page, STORY)
        steps(page).nth(3).focus()
        count, bad = page.evaluate(BAD_CONTRAST)
        assert count > 40
        assert bad == []


def test_a_phone_needs_no_horizontal_scroll(browser, address):
    with opened(browser, address, viewport={"width": 360, "height": 740}) as page:
        say(page, prompts(3)[2])
        page.fill("#prompt", STORY)
        page.click("#race")
        expect(page.locator(".result")).to_contain_text("times as fast", timeout=PATIENCE)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_page_asks_for_the_api_key(browser, demo_model):
    with running(demo_app(*demo_model, api_key="right")) as address:
        page = browser.new_page()
        page.goto(address)
        for key in ("wrong", "right"):
            expect(page.locator("#alert")).to_contain_text("API key", timeout=PATIENCE)
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Use this key").click()
        expect(page.locator("#state")).to_contain_text("ready", timeout=PATIENCE)
        expect(page.locator("#key-form")).to_be_hidden()
        say(page, STORY)
        expect(page.locator(".note")).to_contain_text("tokens/step")
        page.close()


def test_the_page_says_when_the_server_goes_away_and_when_it_is_back(browser):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "medusa.cli", "serve", "demo", "--port", str(port)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    page = browser.new_page()
    try:
        assert any("running on" in line for line in server.stderr)  # it listens
        page.goto(f"http://127.0.0.1:{port}")
        page.fill("#prompt", STORY)
        page.click("#race")
        expect(steps(page).first).to_be_attached(timeout=PATIENCE)
        server.kill()
        server.communicate()
        expect(page.locator("#alert")).to_contain_text("does not answer", timeout=PATIENCE)
        expect(page.locator(".result")).to_contain_text("Broke off")
        expect(page.locator("#send")).to_be_disabled()
        assert page.input_value("#prompt") == STORY  # to send it again
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        expect(page.locator("#send")).to_be_enabled(timeout=PATIENCE)
        expect(page.locator("#alert")).to_be_empty()
        say(page, STORY)
        expect(page.locator(".note").last).to_contain_text("tokens/step")
    finally:
        page.close()
        server.kill()
        server.communicate()


def test_markdown_makes_elements_and_never_html(page):
    text = (
        "# Title\n\nfor x in y:\n    print(x)\n\n"
        "Some **bold**, *italic*, `co<de>` and <img src=x onerror=alert(1)>.\n"
        "- one\n  - two\n\n1. first\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n"
        "[good](https://example.org) [bad](javascript:alert(1))\n```python\nx = '<b>'\n"
    )
    html = page.evaluate(
        "async (text) => { const { markdown } = await import('/page/markdown.js');"
        "const box = document.createElement('div'); box.append(markdown(text));"
        "return box.innerHTML; }",
        text,
    )
    for part in (
        "<h3>Title</h3>",
        "<p>for x in y:<br>    print(x)</p>",
        "<strong>bold</strong>",
        "<em>italic</em>",
        "<code>co&lt;de&gt;</code>",
        "&lt;img src=x onerror=alert(1)&gt;",
        "<ul><li>one<ul><li>two</li></ul></li></ul>",
        "<ol><li>first</li></ol>",
        '<td class="right">2</td>',
        '<a href="https://example.org/"',
        "[bad](javascript:alert(1))",
        "<code>x = '&lt;b&gt;'\n</code>",
    ):
        assert part in html, (part, html)
    assert "<img" not in html
    assert 'href="javascript' not in html


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_event_streams_may_be_cut_anywhere(page, size):
    sent = (
        ': keep-alive\r\n\r\ndata: {"é":"😀"}\r\n\r\n:\n\n'
        "event: x\ndata:one\ndata: two\n\ndata: 3\r\r"
    )
    found = page.evaluate(
        "async ([text, size]) => { const { events } = await import('/page/sse.js');"
        "const bytes = new TextEncoder().encode(text);"
        "const body = new ReadableStream({ start(out) {"
        "  for (let at = 0; at < bytes.length; at += size) out.enqueue(bytes.slice(at, at + size));"
        "  out.close(); } });"
        "const found = []; for await (const data of events(body)) found.push(data);"
        "return found; }",
        [sent, size],
    )
    assert found == ['{"é":"😀"}', "one\ntwo", "3"]
