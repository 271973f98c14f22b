"""The explorer: a page whole in itself that shows any text as text; its numbers in Chromium are minigrpo's."""

import base64
import hashlib
import html
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from groups import pad

import minigrpo.cli
from minigrpo import OBJECTIVES, ProcessTree, process_rewards, step_sizes
from minigrpo.cli import main
from minigrpo.explorer import TEMPLATE, page
from minigrpo.llm.runs import read_group
from minigrpo.objectives import PAPER_OBJECTIVES
from minigrpo.paper import WORKED_EXAMPLE, WORKED_REWARDS

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"&quot;'`${window.hacked = 1}",
    "<!-- {{data}} {{policy}}",
    "\u202eright to left שלום\u202c",
    "👩🏽‍🔬",
    "a\nb\tc\\n",
    "\u2028\u0000",
    "",
    "   ",
]


def worked(**options):
    return ProcessTree([completion.split() for completion in WORKED_EXAMPLE], WORKED_REWARDS, **options)


def data_of(content):
    """What a page brings along."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.DOTALL)[1])


# ---- The page, without a browser -----------------------------------------------------------------------------------


def test_page_is_whole_and_small():
    content = worked().to_html()
    assert len(content.encode()) < 40_000
    assert re.findall(r"""\b(?:src|href|action|srcset)\s*=|url\(|@import|\bimport\b|fetch\(|innerHTML""", content) == []
    assert set(re.findall(r"https?://[^\"' ]*", content)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert "{{" not in content
    assert content.count("<script") == 2


def test_policy_allows_the_template_s_script_alone():
    content = worked().to_html()
    script = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'\"" in content


@pytest.mark.parametrize("scale", ["std", "population", "none"])
def test_page_brings_the_group_and_its_steps(scale):
    tree = worked(scale=scale, eps=0.5)
    data = data_of(tree.to_html(caption="why <b>not</b>"))
    assert data["completions"] == [completion.split() for completion in WORKED_EXAMPLE]
    assert (data["rewards"], data["scale"], data["eps"]) == ([*WORKED_REWARDS], scale, 0.5)
    assert (data["joint"], data["caption"]) == (" ", "why <b>not</b>")
    steps = [(node.start, len(node.tokens), list(node.members)) for node in tree.nodes]
    assert [(step["start"], step["length"], step["members"]) for step in data["steps"]] == steps
    parents = [-1 if step["parent"] < 0 else tree.nodes[step["parent"]] for step in data["steps"]]
    assert all(
        node in tree.roots if above == -1 else node in above.children
        for node, above in zip(tree.nodes, parents, strict=True)
    )
    assert [step["parent"] for step in data["steps"]] == [-1, 0, 0, -1, 3, 3, 5, 5, -1]


def test_texts_can_hold_anything():
    ids = [[*range(len(HOSTILE))], [0, 99]]
    texts = [HOSTILE, [HOSTILE[0], "x"]]
    content = ProcessTree(ids, [0, 1]).to_html(texts=texts, caption=HOSTILE[0])
    data = data_of(content)
    assert data["completions"] == texts
    assert data["caption"] == HOSTILE[0]
    assert data["joint"] == ""
    assert content.count("</script>") == 2
    assert "\u202e" not in content


def test_texts_must_fit():
    with pytest.raises(ValueError) as error:
        ProcessTree([[1, 2], [1]], [0, 1]).to_html(texts=[["a"], ["b"]])
    assert str(error.value) == "texts must hold a text for each token, [2, 1] a completion, got [1, 1]"


def test_notebook_shows_the_page_in_a_frame():
    tree = worked()
    frame = tree._repr_html_()
    attributes = dict(re.findall(r' ([a-z]+)="([^"]*)"', frame))
    assert attributes["sandbox"] == "allow-scripts"
    assert html.unescape(attributes["srcdoc"]) == tree.to_html()
    assert attributes["title"]
    assert repr(tree) == str(tree)  # where the frame is taken out


def test_template_ships_with_the_package():
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    assert f'minigrpo = ["{TEMPLATE.name}", ' in project.read_text(encoding="utf-8")


def test_page_refuses_what_json_has_no_word_for():
    with pytest.raises(ValueError):
        page(caption="", rewards=[float("nan")])


# ---- The rollouts of a run -----------------------------------------------------------------------------------------

EQUAL = {"update": 0, "prompt": "1+1=", "completion_ids": [[5, 6], [5, 7]], "rewards": [1.0, 1.0]}
DIFFERENT = {"update": 10, "prompt": "2+2=", "completion_ids": [[5, 6, 1], [5, 7, 1]], "rewards": [1.0, 0.0]}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [json.dumps(group) for group in (EQUAL, DIFFERENT, EQUAL)]
    (folder / "rollouts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps({"settings": {"model": "tiny"}}), encoding="utf-8")
    return folder


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"rollouts\.jsonl is missing: name a run's folder"):
        read_group(tmp_path)


def test_read_group(run):
    assert read_group(run) == (DIFFERENT, 2, 3)
    assert read_group(run / "rollouts.jsonl", 3) == (EQUAL, 3, 3)
    (run / "rollouts.jsonl").write_text(json.dumps(EQUAL), encoding="utf-8")
    assert read_group(run) == (EQUAL, 1, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "{file} holds no group: it is empty"),
        (b"\n \n", "{file} holds no group: it is empty"),
        (b"\xff\xfe\x00", "{file} is no rollouts.jsonl of a run: it is not text in UTF-8"),
        (b'{"update": 1', "{file}, line 1 is no JSON: "),
        (b"[1, 2]", "{file}, line 1 is no group: expected an object with completion_ids and rewards"),
        (b'{"rewards": [1]}', "{file}, line 1 is no group: expected an object with completion_ids and rewards"),
        (
            b'{"completion_ids": ["ab", "c"], "rewards": [0, 1]}',
            "{file}, line 1: completion_ids must be lists of token ids, got ['ab', 'c']",
        ),
        (
            b'{"completion_ids": [[1], [2]], "rewards": [0]}',
            "{file}, line 1: rewards must be 2 numbers, one a completion, got [0]",
        ),
        (
            b'{"completion_ids": [[1], [2]], "rewards": [0, true]}',
            "{file}, line 1: rewards must be 2 numbers, one a completion, got [0, True]",
        ),
        (b'{"completion_ids": [[1], [2]], "rewards": [0, NaN]}', "rewards must be finite, got [0.0, nan]"),
        (b'{"completion_ids": [[1]], "rewards": [0]}', "completions must hold at least two, one of them not empty"),
    ],
)
def test_what_is_no_run_is_told_so(tmp_path, capsys, content, said):
    file = tmp_path / "rollouts.jsonl"
    file.write_bytes(content)
    assert main(["explore", str(file), "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"minigrpo explore: {said.format(file=file)}")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("number", [0, -1, 4])
def test_group_out_of_range(run, tmp_path, capsys, number):
    file = run / "rollouts.jsonl"
    assert main(["explore", str(file), "--group", str(number), "--out", str(tmp_path / "page.html")]) == 2
    told = f"minigrpo explore: group must be from 1 to 3, the groups of {file}, got {number}\n"
    assert capsys.readouterr().err == told


def test_other_mistakes(tmp_path, capsys):
    assert main(["explore", "--group", "2", "--out", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == "minigrpo explore: --group 2 needs FILE, the rollouts.jsonl of a run\n"
    assert main(["explore", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "page.html")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert main(["explore", "--out", str(tmp_path)]) == 2
    assert "is a folder, expected the name of a file" in capsys.readouterr().err


def test_explore_opens_on_the_paper_s_example(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(minigrpo.cli.webbrowser, "open", lambda address: opened.append(address) or True)
    out = tmp_path / "page.html"
    assert main(["explore", "--out", str(out), "--json", str(tmp_path / "tree.json")]) == 0
    assert data_of(out.read_text(encoding="utf-8"))["rewards"] == [*WORKED_REWARDS]
    printed = capsys.readouterr().out
    assert out.as_uri() in printed
    assert "J K L" in printed
    rows = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))["rows"]
    assert [row["advantage"] for row in rows] == [node.advantage for node in worked().nodes]
    assert not opened
    assert main(["explore", "--out", str(out), "--open"]) == 0
    assert opened == [out.as_uri()]


def test_explore_a_run(run, tmp_path, capsys):
    pytest.importorskip("transformers")
    out = tmp_path / "page.html"
    assert main(["explore", str(run), "--out", str(out)]) == 0
    data = data_of(out.read_text(encoding="utf-8"))
    assert data["completions"] == [["0", "1", "<eos>"], ["0", "2", "<eos>"]]
    assert data["caption"] == f"Group 2 of 3 in {run}, update 10. Prompt: 2+2="
    assert capsys.readouterr().err == ""


def test_without_a_tokenizer_tokens_are_ids(run, tmp_path, capsys):
    pytest.importorskip("transformers")
    (run / "manifest.json").write_text('{"settings": {"model": "nobody/none"}}', encoding="utf-8")
    out = tmp_path / "page.html"
    assert main(["explore", str(run), "--out", str(out)]) == 0
    assert data_of(out.read_text(encoding="utf-8"))["completions"] == [["5", "6", "1"], ["5", "7", "1"]]
    assert "tokens are shown as ids: the tokenizer of 'nobody/none' is not on this machine" in capsys.readouterr().err
    (run / "manifest.json").unlink()
    assert main(["explore", str(run), "--out", str(out)]) == 0
    assert "manifest.json, which names the model, is missing" in capsys.readouterr().err


class Bytes:
    """A tokenizer of bytes: the hard case, as characters are cut."""

    def __len__(self):
        return 256

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", errors="replace")


def test_token_texts_join_to_the_text():
    pytest.importorskip("transformers")
    from minigrpo.llm.tokens import token_texts

    text = "aé 👩🏽‍🔬\n"
    (texts,) = token_texts(Bytes(), [[*text.encode()]])
    assert texts[:4] == ["a", "", "é", " "]
    assert "".join(texts) == text
    assert token_texts(Bytes(), [[0xC3], []]) == [["\ufffd"], []]
    with pytest.raises(ValueError, match="has 256 tokens, and none with the id 300"):
        token_texts(Bytes(), [[1, 300]])


# ---- In Chromium ---------------------------------------------------------------------------------------------------

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
CHROMIUMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    binary, service = next(filter(None, map(shutil.which, CHROMIUMS)), None), shutil.which("chromedriver")
    if "CI" not in os.environ:
        pytest.importorskip("selenium", reason="selenium is missing: pip install -e .[browser]")
        if not (binary and service):
            pytest.skip("Chromium or chromedriver is missing")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    yield driver
    driver.quit()


@pytest.fixture
def show(driver, tmp_path):
    """Show a page; at the end of the test, see that it made no noise and asked for nothing."""
    count = itertools.count()

    def show(content, *, width=1280, height=800, scheme="light", motion="reduce"):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in media.items()]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        file = tmp_path / f"{next(count)}.html"
        file.write_text(content, encoding="utf-8")
        driver.get(file.as_uri())
        # a page that nobody has clicked into yet is told of no focus
        driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        return driver

    yield show
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def choose(driver, objective):
    driver.execute_script(f"document.querySelector('[value={objective}]').click()")


# What the page shows: of each completion its reward and, token by token, the numbers that focus brings.
READ = """
const rows = [...document.querySelectorAll(".completion")].map(row => {
  const tokens = [...row.querySelectorAll(".token")].map(token => {
    token.focus();
    const last = key => [...document.querySelectorAll(`#equation [data-value=${key}] strong`)].at(-1).textContent;
    return {
      text: token.textContent,
      run: token.closest(".run").querySelector(".push").textContent,
      rise: getComputedStyle(token, "::before").height, fall: getComputedStyle(token, "::after").height,
      step: Number(document.querySelector("g.active").dataset.step),
      token: last("token"), R: last("R"), A: last("A"), push: last("push"), total: last("total"),
    };
  });
  const i = Number(row.querySelector("[type=range]").id.slice("reward-".length));
  return [i, { reward: row.querySelector("[type=number]").value, tokens }];
});
const nodes = [...document.querySelectorAll("#tree .node")].map(node => ({
  values: node.querySelector(".values").textContent, total: node.querySelector(".total").textContent,
  segments: [...node.querySelectorAll(".segment")].filter(x => x.width.baseVal.value > 0).length,
  long: [...node.querySelectorAll(".segment")].reduce((sum, x) => sum + x.width.baseVal.value, 0),
}));
return { rows: Object.fromEntries(rows), nodes };
"""


def number(text):
    return float(text.replace("−", "-").strip(" ▲▼"))


def same(shown, value, digits):
    """Whether a shown number is the value at its digits, with the sign and the arrow that belong to it."""
    text = shown.strip(" ▲▼")
    arrows = set(shown) & set("▲▼")
    assert len(text.partition(".")[2]) == digits
    assert not arrows or arrows == {"▲" if value > 0 else "▼"}
    return abs(number(shown) - value) <= 0.5 * 10**-digits * (1 + 1e-9) and ("-0" not in text)


RAGGED = [[1, 2, 3], [1, 2, 3], [1, 2], [], [1, 4, 5, 6], [7], [7, 8], [1, 2, 9]]


@pytest.mark.browser
@pytest.mark.parametrize("objective", PAPER_OBJECTIVES)
@pytest.mark.parametrize(
    ("completions", "rewards", "options"),
    [
        ([[ord(letter) for letter in text.split()] for text in WORKED_EXAMPLE], WORKED_REWARDS, {}),
        (RAGGED, (0.3, -1.5, 0.7, 0.1, 1.0, 0.25, -0.05, 0.7), {"scale": "population", "eps": 0.1}),
        (RAGGED, (0.3, -1.5, 0.7, 0.1, 1.0, 0.25, -0.05, 0.7), {"scale": "none"}),
    ],
    ids=["paper", "population", "none"],
)
def test_numbers_are_minigrpo_s(show, objective, completions, rewards, options):
    from selenium.webdriver.common.keys import Keys

    driver = show(ProcessTree(completions, rewards, **options).to_html())
    choose(driver, objective)
    moved = [*rewards]
    for i, keys in ((len(rewards) - 1, [Keys.ARROW_RIGHT] * 3), (2, [Keys.ARROW_LEFT] * 2)):
        slider = driver.find_element("id", f"reward-{i}")
        slider.send_keys(*keys)
        moved[i] = float(slider.get_property("value"))
    assert abs(moved[-1] - rewards[-1]) > 0.1
    assert abs(moved[2] - rewards[2]) > 0.05
    typed = driver.find_element("css selector", "[aria-label='Reward of completion 1, as a number']")
    driver.execute_script("arguments[0].select()", typed)
    typed.send_keys("-0.123")
    moved[0] = -0.123

    shown = driver.execute_script(READ)
    group = pad([completions], [moved])
    tree = ProcessTree(completions, moved, **options)
    advantages, weights = OBJECTIVES[objective](group.rewards, group.ids, group.mask, **options)
    R, sizes = process_rewards(group.rewards, group.ids, group.mask), step_sizes(group.ids, group.mask)
    tokens = 0
    for i, completion in enumerate(completions):
        row = shown["rows"][str(i)]
        assert number(row["reward"]) == pytest.approx(moved[i], abs=5.1e-4)
        assert len(row["tokens"]) == len(completion)
        for t, token in enumerate(row["tokens"]):
            node = tree.nodes[token["step"]]
            push = (weights * advantages)[0, i, t].item() if weights.dim() == 3 else (weights * advantages)[i, t].item()
            assert i in node.members
            assert node.start <= t < node.start + len(node.tokens)
            assert token["text"] == str(completion[t])
            assert int(token["token"]) == sizes.reshape(len(completions), -1)[i, t] == len(node.members)
            assert same(token["R"], R.reshape(len(completions), -1)[i, t].item(), 3)
            assert same(token["A"], node.advantage, 3)
            assert same(token["push"], push, 3)
            assert same(token["run"], push, 2)
            assert (token["rise"] != "0px", token["fall"] != "0px") == (push > 0.01, push < -0.01)
            members = list(node.members)
            total = (weights * advantages).reshape(len(completions), -1)[members, t].sum().item()
            assert same(token["total"], total, 3)
            assert same(shown["nodes"][token["step"]]["total"].rpartition("= ")[2].rpartition("× ")[2], total, 2)
            tokens += 1
    assert tokens == sum(map(len, completions)) > 10
    for node, drawn in zip(tree.nodes, shown["nodes"], strict=True):
        found = re.fullmatch(r"R (\S+) +A (\S+) +\|λ\| (\d+)", drawn["values"])
        assert same(found[1], node.reward, 2)
        assert same(found[2], node.advantage, 2)
        assert int(found[3]) == len(node.members)
        assert drawn["segments"] == (1 if objective == "lambda_grpo" else len(node.members))
    bars = torch.tensor([drawn["long"] for drawn in shown["nodes"]], dtype=torch.float64)
    counted = [1 if objective == "lambda_grpo" else len(node.members) for node in tree.nodes]
    pushes = torch.tensor([abs(n * node.advantage) for n, node in zip(counted, tree.nodes, strict=True)])
    torch.testing.assert_close(bars / bars.max(), (pushes / pushes.max()).double(), atol=1e-4, rtol=1e-4)


@pytest.mark.browser
def test_equal_rewards_push_nothing(show):
    driver = show(ProcessTree(["ab", "ac", "b"], [0.1] * 3).to_html())
    assert "every advantage is 0" in driver.find_element("id", "finding").text
    for objective in PAPER_OBJECTIVES:
        choose(driver, objective)
        shown = driver.execute_script(READ)
        assert {token["run"].strip() for row in shown["rows"].values() for token in row["tokens"]} == {"0.00"}
        assert {token["push"] for row in shown["rows"].values() for token in row["tokens"]} == {"0.000"}


@pytest.mark.browser
def test_finding_tells_the_surprise(show):
    driver = show(worked().to_html())
    told = {}
    for objective in PAPER_OBJECTIVES:
        choose(driver, objective)
        told[objective] = driver.find_element("id", "finding").text
    assert re.search(r"its completion's advantage: \+1.55, −1.11, −1.11. Together .* down by 0.66", told["grpo"])
    assert re.search(r"3 × −0.22 = −0.66.*best completion", told["grpo"])
    assert re.search(r"3 × −0.22 = −0.66: GRPO's sum", told["prm"])
    assert re.search(r"by \|λ\| = 3: together they push J K L down by 0.22", told["lambda_grpo"])


@pytest.mark.browser
def test_reset_and_numbers_that_are_none(show):
    from selenium.webdriver.common.keys import Keys

    driver = show(worked().to_html())
    before = driver.execute_script(READ)
    field = driver.find_element("css selector", "[aria-label='Reward of completion 4, as a number']")
    field.send_keys(Keys.END, Keys.BACKSPACE)  # it holds 0
    assert field.get_attribute("aria-invalid") == "true"
    assert driver.find_element("css selector", "#tree .total").text == before["nodes"][0]["total"]
    field.send_keys("7.5")
    assert field.get_attribute("aria-invalid") == "false"
    assert driver.execute_script(READ)["nodes"] != before["nodes"]
    driver.find_element("id", "reset").click()
    assert driver.execute_script(READ) == before


@pytest.mark.browser
def test_keyboard_alone_reaches_everything(show):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    driver = show(worked().to_html())

    def press(*keys):
        for key in keys:
            ActionChains(driver).send_keys(key).perform()
        return driver.switch_to.active_element

    assert press(Keys.TAB).get_attribute("value") == "grpo"
    assert press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).get_attribute("value") == "lambda_grpo"
    assert "λ-GRPO" in driver.find_element("id", "finding").text
    assert press(Keys.TAB).get_attribute("id") == "reset"
    stops = [press(Keys.TAB) for _ in range(3 * len(WORKED_EXAMPLE))]
    kinds = [stop.get_attribute("type") or stop.get_attribute("role") for stop in stops]
    assert kinds == ["range", "number", "option"] * len(WORKED_EXAMPLE)
    assert stops[2].text == "A"
    assert press(Keys.TAB).get_attribute("id") == "equation"
    stops[-1].send_keys(Keys.END)
    assert driver.switch_to.active_element.text == "Z"
    assert press(Keys.ARROW_UP).text == "N"  # token 3 of the completion above
    assert press(Keys.HOME, Keys.ARROW_RIGHT).text == "K"
    assert "J K L" in driver.find_element("id", "equation").text
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.browser
def test_a_token_lights_its_step(show):
    from selenium.webdriver.common.action_chains import ActionChains

    driver = show(worked().to_html(), height=1200)

    def lit():
        step = driver.find_element("css selector", "g.active").get_attribute("data-step")
        tokens = [token.text for token in driver.find_elements("css selector", ".token.step")]
        return int(step), "".join(tokens), len(driver.find_elements("css selector", ".completion.member"))

    assert lit() == (3, "JKL" * 3, 3)  # the surprise, before anything is touched
    tokens = driver.find_elements("css selector", ".token")
    quitter = next(token for token in tokens if token.text == "Q")
    ActionChains(driver).move_to_element(quitter).perform()
    assert lit() == (5, "NQ" * 2, 2)
    ActionChains(driver).move_to_element(driver.find_element("css selector", "[data-step='8'] .box")).perform()
    assert lit() == (8, "VWYZ", 1)
    ActionChains(driver).move_to_element(driver.find_element("tag name", "h1")).perform()
    assert lit() == (3, "JKL" * 3, 3)
    ActionChains(driver).move_to_element(driver.find_element("css selector", "[data-step='1'] .box")).click().perform()
    ActionChains(driver).move_to_element(driver.find_element("tag name", "h1")).perform()
    assert lit() == (1, "CD", 1)


@pytest.mark.browser
def test_hostile_texts_are_shown_as_text(show):
    ids = [[*range(len(HOSTILE))], [0, 99]]
    content = ProcessTree(ids, [0, 1]).to_html(texts=[HOSTILE, [HOSTILE[0], "x"]], caption=HOSTILE[1])
    driver = show(content)
    shown = driver.execute_script(READ)["rows"]["0"]["tokens"]
    texts = [token["text"] for token in shown]
    assert texts[:6] == HOSTILE[:6]
    assert texts[6:] == ["a⏎b␉c\\n", "\u2028␀", "∅", "␣␣␣"]
    assert driver.find_element("id", "caption").text == HOSTILE[1]
    assert driver.execute_script("return window.hacked ?? null") is None
    assert driver.execute_script("return document.scripts.length + document.images.length") == 2
    assert driver.execute_script("return document.title").startswith("GRPO explorer")


LONG = [[*range(300)], [*range(200), *range(1000, 1100)], [*range(20)]]
PAGES = {
    "paper": worked,
    "long": lambda: ProcessTree(LONG, [1, 0, 0.5]),
    "word": lambda: ProcessTree([["x" * 400, "y"], ["x" * 400, "z" * 300], ["w"]], [1000.5, -20, 0]),
    "many": lambda: ProcessTree([[0] * k + [k] for k in range(1, 25)], [k / 24 for k in range(24)]),
}


@pytest.mark.browser
def test_a_step_of_the_whole_group_pushes_nothing(show):
    driver = show(PAGES["many"]().to_html())
    assert driver.find_elements("css selector", "#tree .total")[0].text.strip() == "24 × 0.00 = 0.00"
    assert "0.00" not in driver.find_element("id", "finding").text


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 768, 1000, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_page(show, name, width):
    driver = show(PAGES[name]().to_html(caption="word" * 100), width=width)
    for objective in PAPER_OBJECTIVES:
        choose(driver, objective)
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= driver.execute_script("return document.documentElement.clientWidth") <= width
        outside = driver.execute_script("""
            const frame = document.getElementById("tree").getBoundingClientRect();
            return [...document.querySelectorAll("#tree text")]
              .filter(text => text.getBoundingClientRect().right > frame.right + 1).map(text => text.textContent);""")
        assert outside == []


CONTRAST = r"""
const channels = text => { // 0 to 1, and alpha
  const [r, g, b, alpha = 1] = text.match(/-?[\d.]+(e-?\d+)?/g).map(Number);
  return text.startsWith("color(") ? [r, g, b, alpha] : [r / 255, g / 255, b / 255, alpha];
};
const light = ([r, g, b]) => {
  const linear = c => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
};
const ratio = (one, other) => {
  const [low, high] = [light(one), light(other)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
};
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = channels(getComputedStyle(element).backgroundColor.replace("color(srgb ", "color("));
    if (colour[3] > 0) return colour;
  }
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (!own || ["SCRIPT"].includes(element.tagName)) continue;
  const style = getComputedStyle(element), drawn = element.closest("svg");
  const colour = channels((drawn ? style.fill : style.color).replace("color(srgb ", "color("));
  const grounds = drawn ? [behind(drawn), behind(document.querySelector(".member"))] : [behind(element)];
  found.push(...grounds.map(ground => [ratio(colour, ground), element.textContent]));
}
return found;
"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(show, scheme):
    driver = show(worked().to_html(caption="x"), scheme=scheme)
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    for objective in PAPER_OBJECTIVES:
        choose(driver, objective)
        found = driver.execute_script(CONTRAST)
        assert len(found) > 90
        assert [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5] == []


@pytest.mark.browser
def test_names_for_those_who_hear_the_page(show):
    driver = show(worked().to_html())
    assert driver.execute_script("return document.documentElement.lang") == "en"
    tree = driver.find_element("id", "tree")
    assert (tree.get_attribute("role"), tree.aria_role) == ("img", "image")
    assert tree.accessible_name == "Tree of 9 process steps of 6 completions"
    words = driver.find_element("id", "steps").get_attribute("textContent")
    assert "J K L, R 0.33, A −0.22, shared by 3, GRPO pushes −0.66." in words
    assert "after J K L: M, R 1.00" in words
    named = [
        e.accessible_name for e in driver.find_elements("css selector", "input, button, [role=listbox], [role=group]")
    ]
    assert all(named)
    assert {"Reward of y⁽³⁾", "Reward of completion 3, as a number", "Tokens of completion 3"} <= set(named)
    assert len(driver.find_elements("css selector", "[role=option][aria-selected=true]")) == 1


@pytest.mark.browser
@pytest.mark.parametrize(("motion", "seconds"), [("reduce", {"0s"}), ("no-preference", {"0.35s, 0.35s"})])
def test_motion_is_a_choice(show, motion, seconds):
    driver = show(worked().to_html(), motion=motion)
    choose(driver, "prm")
    used = "return [...document.querySelectorAll('.token, .segment')].map(e => getComputedStyle(e).transitionDuration)"
    assert set(driver.execute_script(used)) == seconds


@pytest.mark.browser
def test_two_cells_of_a_notebook_keep_apart(show):
    tree = worked()
    driver = show(f"<style>span {{ color: red }}</style><h1>notebook</h1>{tree._repr_html_()}{tree._repr_html_()}")
    frames = driver.find_elements("tag name", "iframe")
    told = []
    for k, frame in enumerate(frames):
        driver.switch_to.frame(frame)
        if k == 0:
            choose(driver, "lambda_grpo")
        told.append(driver.find_element("id", "finding").text)
        assert driver.execute_script(READ)["nodes"]
        assert not driver.find_element("tag name", "h1").is_displayed()
        driver.switch_to.default_content()
    assert ["once" in told[0], "3 × −0.22" in told[1]] == [True, True]
    assert driver.execute_script("return typeof rewards") == "undefined"
