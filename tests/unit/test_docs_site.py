"""Links of the documentation's site to files outside docs/."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tools.docs_hooks import on_page_markdown


@pytest.mark.parametrize(
    ("page", "link", "turned"),
    [
        ("rewards.md", "environments.md", "environments.md"),
        ("rewards.md", "../rl/train.py", "source/rl/train.py.md"),
        ("rewards.md", "../README.md", "index.md"),
        ("rewards.md", "../rl/algorithms", "source/rl/algorithms/index.md"),
        ("decisions/0001-two-environments.md", "../concepts.md", "../concepts.md"),
        ("index.md", "docs/dapo.md", "dapo.md"),
        ("index.md", "docs/images/quickstart.png", "images/quickstart.png"),
        ("examples/search/README.md", "../../docs/retriever.md", "../../retriever.md"),
        ("examples/search/README.md", "make_data.py", "../../source/examples/search/make_data.py.md"),
        ("source/rl/algorithms/index.md", "losses.py", "losses.py.md"),
        ("rewards.md", "https://arxiv.org/abs/2402.03300", "https://arxiv.org/abs/2402.03300"),
        ("rewards.md", "nowhere.py", "nowhere.py"),  # MkDocs reports it
    ],
)
def test_links_lead_to_pages_of_the_site(page: str, link: str, turned: str) -> None:
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    text = f"See [this]({link}#part) and [that]({link})."
    assert (
        on_page_markdown(text, page=shown, config=None, files=None)
        == f"See [this]({turned}#part) and [that]({turned})."
    )
