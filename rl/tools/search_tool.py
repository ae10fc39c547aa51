"""The search tool: queries a retriever in Search-R1's wire format, and shows its documents to the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rl.errors import ToolError
from rl.tools.base import ServiceUnavailableError, Tool, ToolConfig, ToolOutput
from rl.tools.service import ServiceClient
from rl.types import ToolStatus

_NOTHING = "No documents were found."
_BETWEEN_QUERIES = "\n---\n"


@dataclass
class SearchToolConfig(ToolConfig):
    """Settings of `SearchTool`."""

    retrieval_service_url: str = "embedded"
    """Address of `POST /retrieve`. `embedded` means a retriever that the run starts."""
    corpus_path: str = ""
    """Corpus of an embedded retriever, relative to the working folder or else to the tool YAML."""
    topk: Annotated[int, Field(ge=1)] = 3
    """Documents for each query."""
    first_paragraph: bool = False
    """Show only the first paragraph of each document, without its number and its title."""


class SearchTool(Tool):
    """Searches for every text of `query_list` at once."""

    config_class = SearchToolConfig

    def __init__(self, config: ToolConfig, schema: dict[str, Any]) -> None:
        super().__init__(config, schema)
        self._service = ServiceClient(self.config.default_timeout)

    @property
    def run_limit_s(self) -> float | None:
        """None: a slow search is the retriever's fault, so it is retried."""
        return None

    async def execute(self, state: Any, arguments: dict[str, Any]) -> ToolOutput:
        """Query the retriever.

        Args:
            state: Unused.
            arguments: `query_list`, the queries.

        Returns:
            The documents of each query as in `format_documents`, or their `first_paragraphs`, with a line of dashes
            between two queries.

        Raises:
            ServiceUnavailableError: No connection, a 5xx answer, or an answer that is not Search-R1's.
        """
        url = self.config.retrieval_service_url
        if url == "embedded":
            raise ServiceUnavailableError("retrieval_service_url is 'embedded', and no retriever was started for it")
        body = {"queries": arguments["query_list"], "topk": self.config.topk, "return_scores": True}
        answer = await self._service.post(url, body)
        if isinstance(answer, str):
            return ToolOutput(f"Error: {answer}", ToolStatus.ERROR)
        try:
            lists = [[item["document"]["contents"] for item in items] for items in answer["result"]]
        except (KeyError, TypeError) as error:
            raise ServiceUnavailableError(f"{url}: the answer is not Search-R1's, {error!r}") from error
        to_text = first_paragraphs if self.config.first_paragraph else format_documents
        text = _BETWEEN_QUERIES.join(map(to_text, lists))
        return ToolOutput(text, metrics={"num_documents": float(sum(map(len, lists)))})

    async def check(self) -> None:
        """Search once. For an `embedded` retriever, which the run starts, check that its corpus exists.

        Raises:
            ToolError: The retriever does not answer, its answer is wrong, or there is no corpus.
        """
        if self.config.retrieval_service_url == "embedded":
            if not Path(self.config.corpus_path).is_file():
                raise ToolError(
                    f"{self.name}.corpus_path: an embedded retriever needs a corpus, got '{self.config.corpus_path}'. "
                    "Name a .jsonl or .parquet file, or set retrieval_service_url."
                )
            return
        if self.config.corpus_path:
            raise ToolError(
                f"{self.name}.corpus_path: only an embedded retriever reads it, got '{self.config.corpus_path}'. "
                "Leave it out, or set retrieval_service_url: embedded."
            )
        try:
            output = await self.execute(None, {"query_list": ["test"]})
        except ServiceUnavailableError as error:
            raise ToolError(
                f"{self.name}.retrieval_service_url: the retriever does not answer, {error}. "
                "Start it with `python -m rl retriever`, or set retrieval_service_url: embedded and corpus_path."
            ) from error
        finally:
            await self.close()
        if output.status is not ToolStatus.OK:
            raise ToolError(f"{self.name}.retrieval_service_url: a search was refused, got {output.text!r}.")

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()


def format_documents(contents: list[str]) -> str:
    """Format the documents of one query for the model.

    Args:
        contents: The contents of each document, best first: title, a line break, and text.

    Returns:
        A block per document, `Doc 1 (Title: ...)` and its text, with an empty line in between.

    Source: Search-R1, arXiv:2503.09516. Unlike there, the quotes around titles in its corpora are removed.
    """
    blocks = []
    for number, content in enumerate(contents, start=1):
        title, _, text = content.strip().partition("\n")
        title = title.strip().strip('"')
        blocks.append(f"Doc {number} (Title: {title})\n{text.strip()}".strip())
    return "\n\n".join(blocks) or _NOTHING


def first_paragraphs(contents: list[str]) -> str:
    """Format the documents of one query as TRL's Wiki tool does.

    Args:
        contents: The contents of each document, best first: title, a line break, and text.

    Returns:
        The first line of each text, or the title of a document without text, with an empty line in between.

    Source: TRL, "Learning Tools", the wiki tool: only the first paragraph of the search result is used.
    """
    lines = [[line.strip() for line in content.splitlines() if line.strip()] for content in contents]
    return "\n\n".join(of_one[min(1, len(of_one) - 1)] for of_one in lines if of_one) or _NOTHING
