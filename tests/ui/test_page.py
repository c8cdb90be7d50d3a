"""The page in a real browser, clicked and read as a person would."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
from browsers import Network, launch, playwright, write_camera
from conftest import small_model, terse_model
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, WebSocket, expect
from servers import Running, running, until
from tokenizers import Regex, decoders

from stream import engine, session
from stream.frames import Event
from ui.page import HEADERS
from ui.protocol import HEADER
from videollm import VideoLLM
from videollm.checkpoints import assets_folder

__all__ = ["playwright"]

SAMPLE = assets_folder() / "sample.mp4"
DESKTOP = ViewportSize(width=1440, height=900)
PHONE = ViewportSize(width=390, height=844)
SECONDS = 1000.0  # in milliseconds, as Playwright counts
expect.set_options(timeout=20 * SECONDS)  # a machine may be busy
MARKUP = "<img src=/gone onerror=\"document.title='run'\"><b>bold</b>"


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of the sample clip's first seconds: grey, then a cat from 2 s on."""
    return write_camera(SAMPLE, tmp_path_factory.mktemp("camera") / "cat.y4m", seconds=6)


@pytest.fixture(scope="module")
def browser(playwright: Playwright, camera: Path) -> Iterator[Browser]:
    with launch(playwright, camera=camera) as launched:
        yield launched


@pytest.fixture(scope="module")
def pocket() -> VideoLLM:
    return VideoLLM.from_pretrained("pocket")


@pytest.fixture(scope="module")
def model() -> Iterator[VideoLLM]:
    with terse_model() as model:
        yield model


@pytest.fixture
def server(model: VideoLLM) -> Iterator[Running]:
    """It speaks after every frame."""
    with running(model, grace_seconds=5, threshold=1.0) as running_server:
        yield running_server


@contextmanager
def opened(
    browser: Browser, address: str, size: ViewportSize = DESKTOP, quiet: bool = True
) -> Iterator[Page]:
    """The page, which may ask nothing of any other host and, if `quiet`, may complain of nothing."""
    context = browser.new_context(viewport=size, has_touch=size is PHONE)
    page = context.new_page()
    page.set_default_timeout(20 * SECONDS)
    hosts: set[str] = set()
    complaints: list[str] = []

    def note(address: str) -> None:
        if not address.startswith("blob:"):
            hosts.add(urlsplit(address).netloc)

    page.on("request", lambda request: note(request.url))
    page.on("websocket", lambda socket: note(socket.url))
    page.on(
        "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    try:
        yield page
    finally:
        context.close()
    assert hosts == {urlsplit(address).netloc}
    assert not (quiet and complaints)


def start(page: Page) -> None:
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#connection")).to_have_text("Live")


def stop(page: Page) -> None:
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("#connection")).to_have_text("Ended")


def ask(page: Page, question: str) -> str:
    """The answer."""
    asked = page.locator(".answer", has_text=question)
    page.get_by_label("Ask about what it has seen").fill(question)
    page.keyboard.press("Enter")
    expect(asked).not_to_have_class(re.compile("waiting"))
    return asked.locator(".text").inner_text()


def narrations(page: Page) -> list[str]:
    return page.locator(".narration:not(.waiting) .text").all_inner_texts()


def saved(page: Page, name: str) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return Path(download.value.path()).read_text()


# What people do


@pytest.mark.parametrize(
    "size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"]
)
def test_someone_watches_a_camera_asks_and_saves(
    pocket: VideoLLM, browser: Browser, size: ViewportSize
) -> None:
    with running(pocket) as server, opened(browser, server.http, size) as page:
        start(page)
        cat = page.locator(".narration", has_text="cat").first
        expect(cat).to_be_visible()
        assert 1 <= int(cat.locator("time").inner_text().removeprefix("0:")) <= 4
        assert "cat" in ask(page, "What is in view?")

        cat.get_by_role("button").click()
        large = page.get_by_role("dialog")
        expect(large).to_contain_text("cat")
        assert large.locator("img").evaluate("image => image.naturalWidth") >= 400
        page.keyboard.press("Escape")
        expect(large).to_be_hidden()

        expect(page.locator("#layers span")).to_have_count(30)
        expect(page.locator("#figure-latency")).to_have_text(re.compile(r"\d m?s"))
        expect(page.get_by_role("log")).to_contain_text("cat")
        shown = page.locator(".narration .text").all_inner_texts()
        stop(page)
        events = [msgspec.json.decode(line, type=Event) for line in saved(page, "JSONL").splitlines()]
        said = [event.text for event in events if event.kind == "narration"]
        assert said[: len(shown)] == shown
        assert [event.text for event in events if event.kind == "question"] == ["What is in view?"]
        assert "--> " in saved(page, "SRT") and saved(page, "Markdown").startswith("# ")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_someone_watches_a_clip(pocket: VideoLLM, browser: Browser) -> None:
    with running(pocket) as server, opened(browser, server.http) as page:
        page.get_by_text("Clip", exact=True).click()
        page.locator("#clip").set_input_files(SAMPLE)
        start(page)
        expect(page.locator(".narration", has_text="cat").locator("time")).to_have_text("0:02")
        assert "cat" in ask(page, "What is in view?")
        expect(page.locator("#figure-dropped")).to_have_text("0")
        stop(page)


@pytest.mark.parametrize(
    "size", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"]
)
def test_someone_watches_what_the_server_can_see(
    pocket: VideoLLM, browser: Browser, size: ViewportSize
) -> None:
    sources = {"door": "camera:99", "demo": str(SAMPLE)}
    with running(pocket, sources=sources) as server, opened(browser, server.http, size) as page:
        page.get_by_text("Server", exact=True).click()
        page.get_by_label("Which source of the server").select_option("demo")
        start(page)
        cat = page.locator(".narration", has_text="cat").first
        expect(cat.locator("time")).to_have_text("0:02")
        assert "cat" in ask(page, "What is in view?")
        shown = page.get_by_role("img", name="What the assistant sees")
        until(lambda: shown.evaluate("image => image.naturalWidth") >= 400)
        expect(page.locator("#video")).to_be_hidden()

        cat.get_by_role("button").click()
        large = page.get_by_role("dialog")
        expect(large).to_contain_text("cat")
        assert large.locator("img").evaluate("image => image.naturalWidth") >= 400
        page.keyboard.press("Escape")
        expect(page.locator("#figure-fps")).to_have_text(re.compile(r"[12]\.\d"))
        expect(page.locator("#figure-latency")).to_have_text(re.compile(r"\d m?s"))
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        stop(page)
        expect(shown).to_be_hidden()
        events = [msgspec.json.decode(line, type=Event) for line in saved(page, "JSONL").splitlines()]
        assert "cat" in next(event.text for event in events if event.kind == "narration")


def test_a_source_that_fails_or_ends_is_told_and_questions_are_answered(
    model: VideoLLM, browser: Browser, tmp_path: Path
) -> None:
    for number in range(3):
        Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    sources = {"door": "camera:99", "pictures": str(tmp_path)}
    with running(model, sources=sources, threshold=1.0) as server, opened(browser, server.http) as page:
        page.get_by_text("Server", exact=True).click()
        start(page)
        expect(page.get_by_role("alert")).to_contain_text("door gives no pictures. Ask about it, or stop.")
        stop(page)
        page.get_by_label("Which source of the server").select_option("pictures")
        start(page)
        expect(page.get_by_role("alert")).to_contain_text("pictures has ended")
        assert len(narrations(page)) == 3
        expect(page.locator(".thumb img")).to_have_count(3)
        assert ask(page, "What was there?")
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#connection")).to_have_text("Ended")
        page.get_by_text("Camera", exact=True).click()
        start(page)
        expect(page.locator("#video")).to_be_visible()
        until(lambda: narrations(page))


def test_where_the_server_has_no_sources_none_are_offered(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        start(page)
        expect(page.get_by_text("Server", exact=True)).to_be_hidden()


def test_two_watch_at_once_and_a_third_finds_no_place(model: VideoLLM, browser: Browser) -> None:
    with running(model, max_sessions=2, threshold=1.0) as server:
        with opened(browser, server.http) as one, opened(browser, server.http, PHONE) as two:
            start(one)
            start(two)
            for page in (one, two):
                until(lambda page=page: len(narrations(page)) >= 2)
            with opened(browser, server.http) as third:
                third.get_by_role("button", name="Start", exact=True).click()
                expect(third.get_by_role("alert")).to_contain_text("All places on this server are taken.")
                stop(one)
                third.get_by_role("button", name="Try again").click()
                expect(third.locator("#connection")).to_have_text("Live")
        until(
            lambda: all(
                session.over or session in server.sessions._parked for session in server.sessions.all()
            )
        )


def test_settings_reach_the_model(server: Running, browser: Browser) -> None:
    sent: list[dict[str, object]] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framesent", lambda data: sent.append(json.loads(data)) if isinstance(data, str) else None)

    with opened(browser, server.http) as page:
        page.on("websocket", listen)
        page.locator("summary").click()
        page.get_by_label("Prompt").fill("Look out for cats.")
        start(page)
        assert sent[0]["prompt"] == "Look out for cats." and sent[0]["threshold"] is None
        until(lambda: len(narrations(page)) >= 2)
        page.get_by_label("as the model was trained").uncheck()
        page.get_by_label("How readily it speaks").fill("0")
        page.get_by_label("How readily it speaks").blur()
        until(lambda: sent[-1] == {"type": "session.update", "threshold": 0})
        (live,) = server.sessions.all()
        read = live.figures().frames_read + 2  # those that were on their way
        until(lambda: live.figures().frames_read > read)
        before = live.figures().narrations
        until(lambda: live.figures().frames_read > read + 2)
        assert live.figures().narrations == before


def test_what_an_answer_was_recalled_from_stands_behind_it(
    model: VideoLLM, browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "context_tokens", 300)
    with running(model, threshold=1.0, journal=tmp_path) as server, opened(browser, server.http) as page:
        start(page)
        expect(page.locator(".notice", has_text="The context is full").first).to_be_visible()
        ask(page, "What came first?")
        recalled = page.get_by_role("list", name="Recalled from").get_by_role("listitem")
        expect(recalled).to_have_text([f"0:00 {narrations(page)[0]}"])
        assert recalled.locator("time").get_attribute("datetime") == "PT0.0S"


def test_a_question_by_voice(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        page.add_init_script(
            """
            globalThis.SpeechRecognition = class {
              start() {
                const said = Object.assign([{ transcript: "What is there?" }], { isFinal: true });
                setTimeout(() => { this.onresult({ results: [said] }); this.onend(); }, 50);
              }
            };
            speechSynthesis.speak = (utterance) => (globalThis.aloud = utterance.text);
            """
        )
        page.reload()
        page.locator("summary").click()
        page.get_by_label("speak answers aloud").check()
        start(page)
        page.get_by_role("button", name="Ask by voice").click()
        asked = page.locator(".moment", has_text="What is there?")
        expect(asked).not_to_have_class(re.compile("waiting"))
        assert page.evaluate("aloud") == asked.locator(".text").text_content()


def test_without_voice_nothing_is_offered(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        page.add_init_script(
            "delete globalThis.SpeechRecognition; delete globalThis.webkitSpeechRecognition;"
        )
        page.reload()
        expect(page.get_by_role("button", name="Ask by voice")).to_be_hidden()


# What may go wrong


@contextmanager
def tunnelled(server: Running, browser: Browser) -> Iterator[tuple[Network, Page]]:
    """The page, and the network between it and the server."""
    port = urlsplit(server.http).port
    assert port is not None
    with Network(port) as network, opened(browser, f"http://127.0.0.1:{network.port}", quiet=False) as page:
        yield network, page


def test_after_a_break_it_goes_on_by_itself(server: Running, browser: Browser) -> None:
    with tunnelled(server, browser) as (network, page):
        start(page)
        until(lambda: len(narrations(page)) >= 2)
        network.stall()  # it doesn't come back at once
        network.cut()
        expect(page.locator("#connection")).to_have_text("Reconnecting …")
        expect(page.get_by_role("alert")).to_contain_text("The connection is lost")
        before = len(narrations(page))
        network.restore()
        expect(page.locator("#connection")).to_have_text("Live")
        expect(page.get_by_role("alert")).to_be_hidden()
        until(lambda: len(narrations(page)) >= before + 2)
        stop(page)
        assert len(server.sessions.all()) == 1
        events = [msgspec.json.decode(line, type=Event) for line in saved(page, "JSONL").splitlines()]
        shown = page.locator(".narration .text").evaluate_all("all => all.map((one) => one.textContent)")
        assert shown == [event.text for event in events if event.kind == "narration"]


def test_a_source_of_the_server_goes_on_after_a_break(
    model: VideoLLM, browser: Browser, tmp_path: Path
) -> None:
    for number in range(12):
        Image.new("RGB", (64, 48), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    with (
        running(model, grace_seconds=20, sources={"pictures": str(tmp_path)}, threshold=1.0) as server,
        tunnelled(server, browser) as (network, page),
    ):
        page.get_by_text("Server", exact=True).click()
        start(page)
        until(lambda: len(narrations(page)) >= 2)
        network.stall()
        network.cut()
        expect(page.locator("#connection")).to_have_text("Reconnecting …")
        (live,) = server.sessions.all()
        until(lambda: live.figures().frames_read >= 6)
        network.restore()
        expect(page.get_by_role("alert")).to_contain_text("pictures has ended")
        assert len(narrations(page)) == 12
        expect(page.locator(".thumb img")).to_have_count(12)


def test_a_session_that_the_server_has_forgotten_begins_anew(model: VideoLLM, browser: Browser) -> None:
    with running(model, grace_seconds=0.1, threshold=1.0) as server:
        port = urlsplit(server.http).port
        assert port is not None
        with (
            Network(port) as network,
            opened(browser, f"http://127.0.0.1:{network.port}", quiet=False) as page,
        ):
            start(page)
            until(lambda: narrations(page))
            network.stall()
            network.cut()
            until(lambda: not server.sessions.all())
            network.restore()
            expect(page.get_by_role("alert")).to_contain_text("has forgotten what came before")
            before = len(narrations(page))
            until(lambda: len(narrations(page)) > before)


def test_where_the_model_fails_it_says_so_and_can_be_started_again(
    server: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with opened(browser, server.http, quiet=False) as page:
        start(page)
        until(lambda: narrations(page))
        with monkeypatch.context() as patch:
            patch.setattr(engine, "read", fail)
            expect(page.get_by_role("alert")).to_contain_text("The model failed")
        expect(page.locator("#connection")).to_have_text("Not connected")
        start(page)
        until(lambda: narrations(page))


@pytest.mark.slow
def test_a_connection_gone_dead_without_a_word_is_noticed(server: Running, browser: Browser) -> None:
    with tunnelled(server, browser) as (network, page):
        start(page)
        until(lambda: narrations(page))
        network.stall()
        expect(page.locator("#connection")).to_have_text("Reconnecting …", timeout=30 * SECONDS)
        network.restore()
        expect(page.locator("#connection")).to_have_text("Live")
        before = len(narrations(page))
        until(lambda: len(narrations(page)) > before)


@pytest.mark.slow
def test_pictures_become_smaller_where_the_network_is_slow_and_large_again(
    server: Running, browser: Browser
) -> None:
    sides: list[int] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framesent", lambda data: sides.append(side(data)) if isinstance(data, bytes) else None)

    def side(message: bytes) -> int:
        return max(Image.open(io.BytesIO(message[HEADER.size :])).size)

    with tunnelled(server, browser) as (network, page):
        page.on("websocket", listen)
        network.bytes_per_second = 15_000
        start(page)
        until(lambda: page.wait_for_timeout(100) or (sides and sides[-1] == 224), seconds=30)
        assert sides[0] == 448
        network.bytes_per_second = math.inf
        until(lambda: page.wait_for_timeout(100) or sides[-1] == 320, seconds=30)


def test_a_token_is_asked_for_and_kept_for_this_tab_alone(model: VideoLLM, browser: Browser) -> None:
    with (
        running(model, token="open sesame", threshold=1.0, sources={"door": "camera:99"}) as server,
        opened(browser, server.http, quiet=False) as page,
    ):
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("asks for a token")
        expect(page.get_by_label("Token", exact=True)).to_be_focused()
        page.keyboard.type("open barley")
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The token is wrong")
        expect(page.get_by_text("Server", exact=True)).to_be_hidden()
        page.get_by_label("Token", exact=True).fill("open sesame")
        start(page)
        expect(page.get_by_text("Server", exact=True)).to_be_visible()
        until(lambda: narrations(page))
        expect(page.locator("#layers span")).to_have_count(4)
        assert saved(page, "Markdown").startswith("# ")
        stop(page)
        page.reload()
        assert page.get_by_label("Token", exact=True).input_value() == "open sesame"
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]


def test_without_a_camera_it_says_so_and_a_clip_works(server: Running, playwright: Playwright) -> None:
    with launch(playwright) as bare, opened(bare, server.http) as page:
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("There is no camera")
        page.get_by_text("Clip", exact=True).click()
        page.locator("#clip").set_input_files(SAMPLE)
        start(page)
        until(lambda: narrations(page))


def test_a_refused_camera_and_a_broken_clip_are_told(
    server: Running, playwright: Playwright, tmp_path: Path
) -> None:
    with launch(playwright, "--use-fake-device-for-media-stream") as shy, opened(shy, server.http) as page:
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The camera was refused")
        page.get_by_text("Clip", exact=True).click()
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("Choose a video file")
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(b"no clip")
        page.locator("#clip").set_input_files(broken)
        page.get_by_role("button", name="Try again").click()
        expect(page.get_by_role("alert")).to_contain_text("can't play broken.mp4")
        assert server.sessions.all() == []


def test_over_plain_http_on_a_network_it_says_what_a_camera_needs(
    model: VideoLLM, playwright: Playwright
) -> None:
    with (
        running(model, token="t") as server,
        launch(playwright, "--host-resolver-rules=MAP camera.example 127.0.0.1") as elsewhere,
    ):
        address = server.http.replace("127.0.0.1", "camera.example")
        with opened(elsewhere, address, quiet=False) as page:
            page.get_by_role("button", name="Start", exact=True).click()
            expect(page.get_by_role("alert")).to_contain_text("--certificate")


def test_what_is_said_and_asked_is_text_and_never_html(browser: Browser) -> None:
    model = small_model()
    backend = model.tokenizer.backend_tokenizer
    backend.decoder = decoders.Sequence([decoders.Replace(Regex(".+"), MARKUP)])  # of every token
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "MAX_REPLY_TOKENS", 2)
        with running(model, threshold=1.0) as server, opened(browser, server.http) as page:
            start(page)
            until(lambda: narrations(page))
            assert MARKUP in narrations(page)[0]
            assert MARKUP in ask(page, MARKUP)
            page.keyboard.press("Escape")
            page.keyboard.press("l")
            expect(page.get_by_role("dialog")).to_contain_text(MARKUP)
            assert page.locator("b, main img[src='/gone']").count() == 0
            assert page.title() == "videollm"


# What holds at all times


def test_the_page_may_do_nothing_that_it_does_not_do(server: Running, browser: Browser) -> None:
    with opened(browser, server.http, quiet=False) as page:
        response = page.reload()
        assert response is not None
        policy = response.headers["content-security-policy"]
        assert policy == HEADERS["Content-Security-Policy"]
        assert "unsafe" not in policy and "*" not in policy
        written = "try { document.body.innerHTML = '<b>x</b>', 'written' } catch { 'blocked' }"
        assert page.evaluate(written) == "blocked"
        assert page.evaluate("fetch('https://example.com').then(() => 'sent', () => 'blocked')") == "blocked"


def test_everything_is_reached_by_keyboard_and_seen_there(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        page.keyboard.press("s")
        expect(page.locator("#connection")).to_have_text("Live")
        until(lambda: len(narrations(page)) >= 2)
        page.keyboard.press("/")
        expect(page.get_by_label("Ask about what it has seen")).to_be_focused()
        page.keyboard.type("s/l?")  # nothing but letters here
        assert page.get_by_label("Ask about what it has seen").input_value() == "s/l?"
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        page.get_by_label("single keys do this").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        expect(page.locator("#connection")).to_have_text("Live")

        page.locator(".thumb").nth(1).focus()
        page.keyboard.press("ArrowUp")
        expect(page.locator(".thumb").first).to_be_focused()
        page.locator("summary").click()
        reached, unseen = set(), []
        for _ in range(60):
            page.keyboard.press("Tab")
            name, outlined = page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const shown = at.closest("label")?.querySelector("span") ?? at;
                  const seen = [at, shown].some((one) => getComputedStyle(one).outlineStyle !== "none");
                  return [at === document.body ? "" : at.id || at.textContent.trim(), seen];
                }"""
            )
            reached.add(name)
            if name and not outlined:
                unseen.append(name)
        assert {"show-help", "start", "SRT", "Markdown", "JSONL", "scroll", "question", "send"} <= reached
        assert {"threshold-own", "prompt", "speak", "token"} <= reached
        assert page.locator(".thumb[tabindex='0']").count() == 1  # a long list is no long way
        assert unseen == []


def test_who_reads_the_newest_goes_on_and_who_reads_back_is_left_there(
    server: Running, browser: Browser
) -> None:
    with opened(browser, server.http, PHONE) as page:
        at = "scroll => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight"
        start(page)
        until(lambda: page.locator("#scroll").evaluate("scroll => scroll.scrollTop > 150"))
        assert page.locator("#scroll").evaluate(at) < 5
        page.locator("#scroll").evaluate("scroll => scroll.scrollTop = 0")
        expect(page.get_by_role("button", name="Newest")).to_be_visible()
        before = len(narrations(page))
        until(lambda: len(narrations(page)) > before)
        assert page.locator("#scroll").evaluate("scroll => scroll.scrollTop") == 0
        page.get_by_role("button", name="Newest").click()
        assert page.locator("#scroll").evaluate(at) < 150
        expect(page.get_by_role("button", name="Newest")).to_be_hidden()


def test_who_has_just_scrolled_back_is_left_there(server: Running, browser: Browser) -> None:
    with opened(browser, server.http, PHONE) as page:
        # The browser tells of scrolling in its next frame; here a narration comes before it.
        scrolled = page.evaluate(
            """async () => {
              const { Timeline } = await import("./static/timeline.js");
              const timeline = new Timeline(), scroll = document.getElementById("scroll");
              for (let id = 0; id < 40; id += 1) timeline.say(id, "narration", id, "A cup is in view.");
              const end = scroll.scrollTop;
              scroll.scrollTop = 0;
              timeline.say(40, "narration", 40, "A cat is in view.");
              return [end, scroll.scrollTop, document.getElementById("newest").hidden];
            }"""
        )
        end, left_at, newest_hidden = scrolled
        assert end > 150 and left_at == 0 and not newest_hidden


@pytest.mark.parametrize("width", [320, 390, 861])
def test_nothing_lies_beside_the_screen(server: Running, browser: Browser, width: int) -> None:
    with opened(browser, server.http, ViewportSize(width=width, height=800)) as page:
        page.locator("summary").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for control in page.locator("button:visible, input:visible:not(.choice input)").all():
            box = control.bounding_box()
            assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width


def test_the_figures_are_those_of_the_cache(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        start(page)
        until(lambda: len(narrations(page)) >= 3)
        (live,) = server.sessions.all()
        address = f"{server.http}/v1/sessions/{live.id}"
        cache = page.request.get(address).json()["cache"]
        assert cache["kept"][0] == cache["tokens"] > 3 * 10
        assert all(kept < cache["tokens"] for kept in cache["kept"][1::2])
        assert cache["tokens"] < cache["capacity"] and cache["bytes"] > 0
        expect(page.locator("#layers")).to_have_attribute(
            "aria-label", re.compile(r"each of 4 layers: \d+ %")
        )
        stop(page)
        assert "cache" not in page.request.get(address).json()


def test_a_page_that_is_left_gives_its_place_back(server: Running, browser: Browser) -> None:
    with opened(browser, server.http) as page:
        start(page)
        until(lambda: narrations(page))
        page.goto("about:blank")
        (live,) = server.sessions.all()
        until(lambda: live.over, seconds=4)
