"""The figures show the numbers they are given, every axis says what it counts, and the report stands alone."""

import html
import itertools
import re

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from minigrpo import ProcessTree, report, viz
from minigrpo.experiments import TrapConfig, harmonic_utility, race_threshold, trap_rows
from minigrpo.llm.plots import plot_language_trap
from minigrpo.paper import TABLE1

CELLS = tuple(TABLE1)
CASES = {"a case": 3e-16, "broken: another": 0.5, "a third": 0.0}


@pytest.fixture(scope="module")
def hits():
    generator = torch.Generator().manual_seed(1)
    shape = len(CELLS), 4, 60
    return {name: torch.rand(shape, generator=generator) * top for name, top in (("grpo", 0.5), ("lambda_grpo", 1.0))}


@pytest.fixture(scope="module")
def tree(example):
    return ProcessTree(example.words, example.group.scores[0])


def theorem_rows():
    return [{"case": name, "grad_gap": gap, "median_gap": gap / 2, "differ": 0.25} for name, gap in CASES.items()]


def overlap_rows():
    keys = ("path_depth", "intermediate_proportion", "entropy")
    return [
        {"group_size": G, "update": update} | {key: (G + update) * (k + 1) / 100 for k, key in enumerate(keys)}
        for G in (6, 36)
        for update in range(15)
    ]


def races():
    """Two seeds that find the target and one that does not, in 30 updates; λ-GRPO finds it in all three."""
    way = torch.linspace(0.2, 0.95, 30)
    found, lost = torch.stack([way, way], dim=1), torch.stack([0.3 - way / 4, way], dim=1)
    return {"grpo": torch.stack([found, found, lost]), "lambda_grpo": torch.stack([found] * 3)}


def language_curves():
    """A run of each objective in each of four panels; that of λ-GRPO ends after 5 of 20 updates."""
    keys = itertools.product((1, 2), (1e-5, 2e-5), ("grpo", "lambda_grpo"))
    return [
        {"n": n, "r_neg": -0.5, "learning_rate": lr, "objective": objective, "seed": 0}
        | {"update": update, "p_target": update / 20}
        for n, lr, objective in keys
        for update in range(21 if objective == "grpo" else 6)
    ]


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts] + [text.get_text() for text in figure.texts]


def curves(axes):
    """Each line of axes by its label: x and y."""
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.lines}


@pytest.fixture(scope="module")
def figures(tree, hits):
    return {
        "tree": viz.plot_tree(tree),
        "theorem": viz.plot_theorem(theorem_rows()),
        "table1": viz.plot_table1(*trap_rows(hits, TrapConfig())),
        "curves": viz.plot_trap_curves(hits, CELLS),
        "overlap": viz.plot_overlap(overlap_rows()),
        "packing": viz.plot_packing("pq", ["abc", "abd", "e"]),
        "readme": viz.plot_readme(tree, hits, CELLS),
        "expectation": viz.plot_expectation(),
        "race": viz.plot_race(races()),
        "language trap": plot_language_trap(language_curves(), updates=20),
    }


def test_every_axis_is_labelled(figures):
    labelled = {}
    for name, figure in figures.items():
        assert isinstance(figure, Figure)
        shown = [axes for axes in figure.axes if axes.axison]
        below = [axes for axes in shown if axes.get_subplotspec() is None or axes.get_subplotspec().is_last_row()]
        left = [axes for axes in shown if axes.get_subplotspec() is None or axes.get_subplotspec().is_first_col()]
        assert all(axes.get_xlabel().strip() for axes in below), name
        assert all(axes.get_ylabel().strip() for axes in left), name
        labelled[name] = len(shown)
    assert labelled == {"tree": 0, "theorem": 1, "table1": 2, "curves": 6, "overlap": 3, "packing": 1, "readme": 1} | {
        "expectation": 2,
        "race": 2,
        "language trap": 4,
    }


def test_nothing_sticks_out_of_a_figure_and_no_letter_lacks_a_glyph(figures, recwarn):
    for name, figure in figures.items():
        figure.draw_without_rendering()  # lays it out
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert drawn.width > 0.8 * width, name
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= 0, (name, drawn)
    assert [str(warning.message) for warning in recwarn if "lyph" in str(warning.message)] == []


def test_tree_shows_each_step_and_its_push(tree, example):
    figure = viz.plot_tree(tree)
    shown = texts(figure)
    for node in tree.nodes:
        assert " ".join(node.tokens) in shown
        size, advantage = len(node.members), f"{node.advantage:+.2f}".replace("-", "−")
        assert f"R {node.reward:.2f}   A {advantage}   |λ| {size}" in shown
        assert f"λ-GRPO {advantage}" in shown
        assert f"GRPO {size} × {advantage}" in shown if size > 1 else f"GRPO {advantage}" in shown
    assert sorted(text for text in shown if text.startswith("r =")) == ["r = 0"] * 2 + ["r = 0.5"] * 3 + ["r = 1 ★"]
    assert "GRPO's pushes on “J K L” add up to 3 × −0.22, though the best completion begins with it" in shown
    assert "mine" in texts(viz.plot_tree(tree, title="mine"))


def test_bars_of_the_tree_are_as_long_as_the_push(tree):
    bars = [p for p in viz.plot_tree(tree).axes[0].patches if isinstance(p, matplotlib.patches.Rectangle)]
    lengths = [bar.get_width() for bar in bars]
    expected = [node.advantage for node in tree.nodes for _ in range(len(node.members) + 1)]  # GRPO's, then λ-GRPO's
    scale = lengths[0] / expected[0]
    assert scale > 0
    assert lengths == pytest.approx([scale * advantage for advantage in expected], rel=1e-9)


def test_tree_takes_any_tokens():
    words = [["$", "x", "$"] * 9, ["$", "x", "\n"], ["$", "x"], []]
    figure = viz.plot_tree(ProcessTree(words, [0, 0, 0, 0]))
    figure.draw_without_rendering()
    shown = texts(figure)
    assert "⏎" in shown
    assert shown.count("r = 0 ★") == 3  # one of them ends inside the tree; the empty one is in no step
    assert any("…" in text and len(text) <= 16 for text in shown)
    assert "The process steps of 4 completions" in shown


def test_theorem_draws_the_gaps():
    axes = viz.plot_theorem(iter(theorem_rows())).axes[0]
    lines, names = curves(axes), [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["a case", "a third", "another"]
    np.testing.assert_array_equal(lines["theorem holds: largest gap"], [[3e-16, viz.FLOOR], [0, 1]])
    np.testing.assert_array_equal(lines["broken on purpose: largest gap"], [[0.5], [2]])
    np.testing.assert_array_equal(lines["broken on purpose: median gap"], [[0.25], [2]])
    assert [1e-12, 1e-12] in [list(line.get_xdata()) for line in axes.lines]
    assert axes.get_xscale() == "log"
    assert "in 25% of groups" in texts(axes.figure)


def test_table1_draws_means_intervals_and_the_paper(hits):
    rows, differences = trap_rows(hits, TrapConfig())
    above, below = viz.plot_table1(rows, differences).axes
    for k, name in enumerate(("grpo", "lambda_grpo")):
        kept = [row for row in rows if row["objective"] == name]
        mean, _, (bars,) = above.containers[k].lines
        np.testing.assert_array_equal(mean.get_ydata(), [row["mean"] for row in kept])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, [[row["ci_low"], row["ci_high"]] for row in kept], atol=1e-9)
        paper = curves(above)[f"{viz.NAMES[name]} in the paper (GPT-2 small, 5 seeds)"][1]
        np.testing.assert_array_equal(paper, [both[k] for both in TABLE1.values()])
    np.testing.assert_array_equal(below.containers[0].lines[0].get_ydata(), [row["mean"] for row in differences])
    assert below.get_xticklabels()[1].get_text() == "n = 1\nr_neg = −1.0"


def test_curves_are_trailing_means_over_seeds(hits):
    figure = viz.plot_trap_curves(hits, CELLS)
    for c, axes in enumerate(figure.axes):
        for name, hit in hits.items():
            updates, mean = curves(axes)[viz.NAMES[name]]
            by_hand = [hit[c, :, max(0, u - 10) : u].double().mean().item() for u in updates]
            np.testing.assert_allclose(mean, by_hand, rtol=1e-6)
            assert (updates[0], updates[-1]) == (1, 60)
    grpo, repaired = figure.axes[0].lines
    assert grpo.get_linestyle() != repaired.get_linestyle()


def test_overlap_draws_each_update():
    rows = overlap_rows()
    for axes, key in zip(
        viz.plot_overlap(rows).axes, ("path_depth", "intermediate_proportion", "entropy"), strict=True
    ):
        thin = [line for line in axes.lines if not line.get_label().startswith("G")]
        drawn = [list(line.get_ydata()) for line in thin]
        assert drawn == [[row[key] for row in rows if row["group_size"] == G] for G in (6, 36)]
        assert {"G = 6", "G = 36"} <= set(curves(axes))


def test_readme_claims_what_the_data_say(tree, hits):
    figure = viz.plot_readme(tree, hits, CELLS)
    shares = [f"{viz.NAMES[name]} {hit[..., -50:].mean():.0%}" for name, hit in hits.items()]
    assert any(text.endswith(", ".join(shares)) for text in texts(figure))
    mean = curves(figure.axes[1])["GRPO"][1]
    assert mean[-1] == pytest.approx(hits["grpo"][..., -10:].double().mean().item(), rel=1e-6)


def test_expectation_draws_both_weights_and_the_utility():
    weights, utility = viz.plot_expectation((3, 16)).axes
    drawn = curves(weights)
    assert list(drawn) == ["GRPO, G = 3", "GRPO, G = 16", "λ-GRPO, G = 3", "λ-GRPO, G = 16"]
    p = np.asarray(drawn["GRPO, G = 3"][0])
    assert np.allclose(drawn["GRPO, G = 3"][1], 2 * p)
    assert np.allclose(drawn["λ-GRPO, G = 3"][1], 1 - (1 - p) ** 2)
    lines = curves(utility)
    (name,) = (name for name in lines if name.endswith("G = 16"))
    p, drawn = (torch.as_tensor(np.asarray(values)) for values in lines[name])
    expected = harmonic_utility(p, 16)
    expected = (expected - expected[0]) / (expected[-1] - expected[0])
    assert torch.allclose(drawn, expected)


def test_race_counts_who_finds_the_target_and_shades_what_is_worth_it():
    left, right = viz.plot_race(races(), (1, -0.5)).axes
    assert left.get_title(loc="left") == "GRPO: 2 of 3 seeds find the target"
    assert right.get_title(loc="left") == "λ-GRPO: 3 of 3 seeds find the target"
    assert race_threshold((1, -0.5)) == pytest.approx(0.8)  # q − 0.5·(1 − q) = 0.7
    assert race_threshold((2, -1.0)) == pytest.approx(0.85)
    (band,) = left.patches
    assert band.get_y() == pytest.approx(0.8)


def test_language_trap_keeps_the_value_of_a_run_that_ended():
    axes = plot_language_trap(language_curves(), updates=20).axes
    assert [panel.get_title(loc="left") for panel in axes] == [
        *("n = 1, learning rate 1e-05", "n = 1, learning rate 2e-05"),
        *("n = 2, learning rate 1e-05", "n = 2, learning rate 2e-05"),
    ]
    drawn = curves(axes[0])
    assert drawn["λ-GRPO, mean of all runs"][1][-1] == pytest.approx(0.25)
    assert len(drawn["λ-GRPO, mean of all runs"][1]) == 21
    assert drawn["GRPO, mean of all runs"][1][-1] == 1.0


def test_bad_input(tree, hits, tmp_path):
    with pytest.raises(ValueError, match="group_sizes must be at least 2, got 1"):
        viz.plot_expectation((1,))
    with pytest.raises(ValueError, match="objective must be one of"):
        viz.plot_race({"dpo": races()["grpo"]})
    with pytest.raises(ValueError, match="curves must hold at least one row, got none"):
        plot_language_trap([])
    for call in (
        lambda: viz.plot_theorem([]),
        lambda: viz.plot_overlap([]),
        lambda: viz.plot_trap_curves({}, CELLS),
        lambda: viz.plot_trap_curves(hits, CELLS[:2]),
        lambda: viz.plot_readme(tree, {"sarsa": hits["grpo"]}, CELLS),
        lambda: report.save(Figure(), tmp_path / "figure.jpg"),
        lambda: report.Picture(Figure(), " "),
        lambda: report.Table(("a", "b"), [(1, 2), (3,)]),
    ):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError, match="got int"):
        report.report(tmp_path / "page.html", [("Heading", [3])], "Title")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_save_writes_the_same_file_twice_and_nothing_else(figures, tmp_path, suffix, start):
    paths = [report.save(figures["tree"], tmp_path / "new" / f"{k}{suffix}") for k in range(2)]
    first, second = (path.read_bytes() for path in paths)
    assert first.startswith(start)
    assert first == second
    assert sorted((tmp_path / "new").iterdir()) == paths


def test_a_notebook_shows_a_figure(figures):
    assert figures["overlap"]._repr_png_().startswith(b"\x89PNG")


def test_report_stands_alone(figures, tmp_path, monkeypatch):
    pictures = [report.Picture(figure, f"what <{name}> shows", f"caption & {name}") for name, figure in figures.items()]
    table = report.Table(
        ("case <b>", "gap"), [("<script>alert(1)</script>", -0.5), ("1 & 2", "[+0.1, +0.2]")], "cap <i>"
    )
    blocks = ["<script>alert(2)</script>", report.Pre("└─ <script>"), table, *pictures]
    page = report.report(tmp_path / "page.html", [("One <h>", blocks), ("Two", ["text"])], "A <title>").read_text(
        "utf-8"
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3
    assert re.findall(r'alt="([^"]*)"', page) == [html.escape(picture.alt) for picture in pictures]
    sources = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'> ]*)", page)
    assert len(sources) == len(pictures)
    assert all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    assert re.findall(r"@import|url\(", page) == []
    for tag in (
        '<html lang="en">',
        '<meta name="viewport"',
        "<title>A &lt;title&gt;</title>",
        "prefers-color-scheme: dark",
    ):
        assert tag in page
    assert re.findall(r"<(h\d)>", page) == ["h1", "h2", "h2"]
    assert '<th scope="col" class="number">gap</th>' in page
    assert '<td class="number">-0.5</td>' in page
    assert "<td>1 &amp; 2</td>" in page
    monkeypatch.setattr(report, "HEAVY", 0)
    heavy = report.report(tmp_path / "heavy.html", [("One", pictures[:1])], "Title").read_text("utf-8")
    assert "data:image/png;base64," in heavy
    assert "svg+xml" not in heavy
