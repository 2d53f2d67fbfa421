"""The pages as a browser shows them: nothing in the console, nothing wider than the window, in print as well."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, browser, needs_browser
from support.snakemake_session import Session

pytestmark = [pytest.mark.browser, pytest.mark.workflow, needs_browser]

# Snakemake's own report carries a build of Tailwind that warns of itself.
OF_SNAKEMAKE = "cdn.tailwindcss.com should not be used in production"

SMALL = {
    "runs_per_job": 4,
    "tracking": {"enabled": False},
    # A network that has hardly learnt finds thousands of the smallest below.
    "localize": {"threshold": 0.6},
    "explore": {
        "trials": 2,
        "window": 1,
        "startup_trials": 2,
        "validations": 2,
        "threads": 1,
        "networks": {"UNet": {"width": {"choices": [4, 8]}, "levels": 2, "bottleneck_levels": 0}},
        "space": {"patch": 16, "batch_size": {"choices": [1, 2]}},
    },
}


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A session in which the chain and a search have run."""
    session = Session(tmp_path_factory.mktemp("browser"))
    session.configure(SMALL)
    session.snakemake("phantom")
    session.snakemake("all", "explore")
    return session


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def pages(session: Session) -> list[Path]:
    (study,) = (session.folder / "results/explore").glob("*/report.html")
    return [session.folder / "results/report/tiny.html", study]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_pages_fit_their_window_and_complain_of_nothing(session: Session, tab: Browser, width: int, dark: bool) -> None:
    for page in pages(session):
        tab.open(page, width, dark=dark)
        # What is folded must fit as well.
        tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert tab.overflow() == 0, page
        assert tab.complaints() == []
        broken = "[...document.images].map(i => { i.loading = 'eager'; return i.decode().then(() => 0, () => 1); })"
        assert tab.evaluate(f"Promise.all({broken}).then(found => found.reduce((a, b) => a + b, 0))") == 0
        assert tab.evaluate("[...document.querySelectorAll('img, svg[role=img]')].every(i => i.alt || i.ariaLabel)")
        assert tab.evaluate("[...document.querySelectorAll('table')].every(table => table.caption)")


def test_a_command_is_copied(session: Session, tab: Browser) -> None:
    tab.open(pages(session)[0])
    tab.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    tab.evaluate("document.querySelector('button.copy').click()")
    tab.wait_for("document.querySelector('button.copy').textContent === 'copied'")
    assert tab.evaluate("navigator.clipboard.readText()") == "napari-copick run --config results/phantom/copick.json"


def test_pages_can_be_printed(session: Session, tab: Browser, tmp_path: Path) -> None:
    for page in pages(session):
        tab.open(page)
        tab.print(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF-")


def test_figures_open_alone(session: Session, tab: Browser) -> None:
    for page in pages(session):
        figures = sorted(page.with_suffix("").rglob("*.svg"))
        assert figures
        for figure in figures:
            tab.open(figure)
            assert tab.evaluate("document.documentElement.getBoundingClientRect().width > 100")
            assert tab.evaluate("document.documentElement.getBBox().width > 0")
            assert tab.complaints() == []


def test_the_report_of_snakemake_lists_every_figure(session: Session, tab: Browser, tmp_path: Path) -> None:
    session.snakemake("all", "explore", "--report", str(tmp_path / "report.zip"))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        archive.extractall(tmp_path)
    for width in (1280, 400):
        tab.open(tmp_path / "report/report.html", width)
        tab.wait_for("document.querySelector('#app').innerText.includes('Figures')")
        assert tab.overflow() == 0
        assert [entry for entry in tab.complaints() if OF_SNAKEMAKE not in entry[1]] == []
    # The page that it begins with.
    text = tab.evaluate("document.querySelector('#app').innerText")
    assert "project phantom" in text and "Trained here: tiny" in text
    assert tab.evaluate("document.querySelectorAll('.system-message, .problematic').length") == 0
    listed = set(tab.evaluate("Object.keys(results)"))
    for page in pages(session):
        figures = [file for file in page.with_suffix("").rglob("*") if file.suffix in (".svg", ".png")]
        assert {str(file.relative_to(session.folder)) for file in (page, *figures)} <= listed
    captions = tab.evaluate("Object.values(results).map(result => result.caption)")
    assert all(caption and "system-message" not in caption for caption in captions)
    for path in tab.evaluate("Object.values(results).map(result => result.data_uri)"):
        assert (tmp_path / "report" / path).is_file()
