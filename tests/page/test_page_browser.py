"""The page in a real Chromium: `pytest -m browser`."""

import itertools
import zipfile

import numpy as np
import pytest
from serving_pages import HOSTILE, application, guarded, of_policy, of_types

from benchmarks.chromium import NoChromium, Screen, chromium, serving
from fsa.data import columns
from fsa.data.tasks.simulated import TwoTypes
from fsa.language.huggingface import peft, weights
from fsa.serving.page.opposite import opposite

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("quick_compile")]

WIDTHS = (1280, 390)


@pytest.fixture
def downloads(tmp_path):
    return tmp_path / "downloads"


@pytest.fixture
def driver(downloads):
    try:
        with chromium(downloads) as found:
            yield found
    except NoChromium as reason:
        pytest.skip(str(reason))


@pytest.fixture
def drinks(page, driver, tmp_path):
    """A page whose options are texts, some of them hostile."""
    with serving(application(page, tmp_path)) as address:
        yield Screen(driver, address)


# Made before a browser is, which would wait for minutes.
@pytest.fixture(scope="module")
def types_page(tmp_path_factory):
    """A page of a run on the two types of people of the demo, trained for a minute."""
    page = of_types(tmp_path_factory.mktemp("types") / "run")
    page.session(), page.view([])
    return page


@pytest.fixture(scope="module")
def policy_page(language_folder):
    """A policy, and its page."""
    steerer, page = of_policy(language_folder)
    page.session(), page.view([])
    return steerer, page


@pytest.mark.parametrize("user_type", [0, 1])
def test_ten_choices_tell_which_type_a_person_is(
    types_page, driver, tmp_path, user_type
):
    """Chosen by keys and by clicks; the map follows, and so does the ranking."""

    def reward(options):
        return np.asarray(TwoTypes.reward(np.ravel(options), user_type))

    with serving(application(types_page, tmp_path)) as address:
        screen = Screen(driver, address)
        at_first = screen.regions
        for turn in range(10):
            assert screen.one("#number").text == f"Question {turn + 1}"
            wanted = [types_page.options[i] for i in screen.options]
            side = int(np.argmax(reward(wanted)))
            if turn % 2:
                screen.click(screen.all(".pick")[side], gives=1)
            else:
                screen.press(str(side + 1), gives=1)
        assert screen.regions != at_first
        first, last = (
            [
                types_page.options[int(each.get_attribute("data-option"))]
                for each in screen.all(f"#{end} li")
            ]
            for end in ("first", "last")
        )
    assert max(reward(last)) < min(reward(first))
    held_out = np.random.default_rng(7).uniform(size=(400, 1)).round(3)
    answers = read_answers(tmp_path)
    probability = types_page.model.rank(answers, held_out.tolist()).probability
    true, expected = (x[:200] - x[200:] for x in (reward(held_out), probability))
    differ = true != 0
    agrees = np.sign(true) == np.sign(expected)
    assert agrees[differ].mean() >= 0.9 and differ.sum() > 190


def read_answers(folder):
    """The rows of the answers that a server kept of the person."""
    from fsa.serving.people import PeopleStore

    store = PeopleStore(folder / "people.sqlite")
    return [each.answer for each in store.answers("me")]


def test_undo_skip_tie_and_thumbs(drinks):
    screen = drinks
    asked, regions = screen.options, screen.regions
    screen.press("1", gives=1)
    assert screen.options != asked and screen.regions != regions
    screen.press("BACKSPACE", gives=-1)
    assert screen.options == asked and screen.regions == regions
    screen.press("s")
    screen.wait(lambda: screen.options != asked)
    assert screen.num_answers == 0 and screen.regions == regions
    screen.press("t", gives=1)
    screen.click(screen.one("[data-side=first] [data-vote=liked]"), gives=1)
    liked = screen.regions
    screen.click(screen.one("[data-side=second] [data-vote=disliked]"), gives=1)
    assert screen.regions != liked
    screen.click(screen.one("#undo"), gives=-1)
    assert screen.regions == liked
    screen.js("document.querySelector('#random').click()")
    screen.press("2", gives=1)
    assert screen.complaints == []


def test_hostile_texts_are_shown_as_text(drinks, page):
    """Script, HTML, 100 kB and writing from right to left, at both widths."""
    screen, seen = drinks, set()
    positions = {name: 5 + i for i, name in enumerate(HOSTILE)}
    for _ in itertools.combinations(range(len(page.options)), 2):
        options, texts = screen.options, screen.texts
        for option, text in zip(options, texts, strict=True):
            for name, position in positions.items():
                if option == position and name not in seen:
                    assert_shown(HOSTILE[name], text)
                    for width in WIDTHS:
                        screen.resize(width)
                        assert overflow(screen) <= 0
                    seen.add(name)
        if len(seen) == len(HOSTILE):
            break
        screen.press("s")
        screen.wait(lambda before=options: screen.options != before)
    assert seen == HOSTILE.keys()
    assert screen.js("return window.hacked") is None
    assert (
        screen.js(
            "return document.querySelectorAll('.content :is(script, img, a, b)').length"
        )
        == 0
    )
    assert screen.complaints == []


def assert_shown(text, shown):
    """All characters are there but for white space, which Markdown may change."""
    assert "".join(text.split()) == "".join(shown.split())


def overflow(screen):
    """How far something reaches out of the window, in pixels."""
    return screen.js(
        "const all = document.documentElement; return all.scrollWidth - all.clientWidth"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_moves_when_an_answer_arrives(drinks, width):
    screen = drinks
    screen.resize(width)
    before = boxes(screen)
    assert overflow(screen) <= 0
    for (a, first), (b, second) in itertools.combinations(before.items(), 2):
        apart = (
            first[0] + first[2] <= second[0] + 0.5
            or second[0] + second[2] <= first[0] + 0.5
            or first[1] + first[3] <= second[1] + 0.5
            or second[1] + second[3] <= first[1] + 0.5
        )
        assert apart, (a, b)
    screen.press("1", gives=1)
    assert boxes(screen) == before


def boxes(screen):
    """Left, top, width and height of what can be pressed and of the parts."""
    return screen.js(
        """
        const shown = [...document.querySelectorAll(
          "#choose button, #choose .content, #choose .switch, #map, #take .card")]
          .filter((x) => x.offsetParent !== null || x.id === "map");
        return Object.fromEntries(shown.map((x, i) => {
          const box = x.getBoundingClientRect();
          const top = box.top + scrollY;
          return [`${i} ${x.id || x.className.baseVal || x.className}`,
            [box.left, top, box.width, box.height].map(Math.round)];
        }));
        """
    )


def test_tables_go_out_and_come_in(drinks, downloads):
    screen = drinks
    for key in "121":
        screen.press(key, gives=1)
    regions = screen.regions
    screen.click(screen.one("#take-table"))
    table = screen.downloaded(downloads, "choices.csv")
    assert len(columns.read_told(table)) == 3
    screen.click(screen.one("#take-picture"))
    assert screen.downloaded(downloads, "report.png").read_bytes()[1:4] == b"PNG"
    for _ in range(3):
        screen.press("BACKSPACE", gives=-1)
    screen.one("#other").send_keys(str(table))
    screen.wait(lambda: len(screen.all(".region.them")) == 2)
    screen.one("#load").send_keys(str(table))
    screen.wait(lambda: screen.num_answers == 3)
    mine = [each for each in screen.regions if "them" not in each]
    assert mine == [each for each in regions if "them" not in each]


def test_a_policy_answers_for_a_person_and_gives_the_adapter(
    policy_page, driver, downloads, tmp_path
):
    steerer, page = policy_page
    with serving(application(page, tmp_path)) as address:
        screen = Screen(driver, address)
        for key in "1212":
            screen.press(key, gives=1)
        screen.one("#question").send_keys("review the novel :")
        screen.click(screen.one("#send"))
        screen.wait(lambda: len(screen.all(".answer:not(.busy)")) == 3)
        texts = [each.text for each in screen.all(".answer .text")]
        screen.click(screen.one("#take-adapter"))
        archive = screen.downloaded(downloads, "me.zip")
        z = page.model.latent(read_answers(tmp_path)).mean
    prior = page.model.posterior([])
    where = [prior.mean, z, opposite(z, prior).astype(np.float32)]
    options = dict(max_new_tokens=200, temperature=0.7, seed=0)
    for text, at in zip(texts, where, strict=True):
        (wanted,) = steerer.write(["review the novel :"], at[None], **options).texts
        assert " ".join(text.split()) == " ".join(wanted.split())
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "adapter")
    loaded = peft.load(
        tmp_path / "adapter", weights.parameters_of(steerer.language.model)
    )
    for path, lora in steerer.adapter(z).items():
        assert np.allclose(loaded[path].a @ loaded[path].b, lora.a @ lora.b, atol=1e-5)


def test_a_server_that_wants_a_token_is_asked_for_once(page, driver, tmp_path):
    """The token is in no address, and is gone with the tab."""
    token = "0123456789abcdef0123"
    with serving(guarded(page, tmp_path, token)) as address:
        driver.get(address)
        screen = Screen.__new__(Screen)
        screen.driver = driver
        form = "#sign-in"
        screen.wait(lambda: screen.one(form).is_displayed())
        assert not screen.one("main").is_displayed()
        for sent, shown in (("wrong", True), (token, False)):
            screen.wait(lambda: screen.one("#token").get_attribute("value") == "")
            screen.one("#token").send_keys(sent)
            screen.one("#sign-in button").click()
            if shown:
                screen.wait(lambda: screen.one("#token-message").text)
        screen.wait(lambda: screen.js("return document.documentElement.dataset.ready"))
        assert not screen.one(form).is_displayed()
        screen.press("1", gives=1)
        driver.refresh()
        screen.wait(lambda: screen.js("return document.documentElement.dataset.ready"))
        assert screen.num_answers == 1
        seen = screen.js(
            "return [location.href, document.cookie, JSON.stringify(localStorage),"
            "...performance.getEntriesByType('resource').map(x => x.name)]"
        )
        assert not any(token in each for each in seen)
