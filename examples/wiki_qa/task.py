"""The Wiki task of TRL's TextEnvironment: its prompt and its reward.

    Q: Who won Super Bowl XX?
    A: Chicago Bears
    A2: <request><Wiki>Super Bowl XX<call>Super Bowl XX was an American football game ...<response>
    Result=Chicago Bears<submit>

The prompt ends with the question mark. The model guesses, and writes a request up to `<call>`. The first paragraph of
the article that the tool finds and `<response>` are inserted behind it, in the same turn, and are not trained on. The
model goes on with the result.
"""

from __future__ import annotations

from rl.types import Trajectory

PROMPT = """\
Answer the following question:

Q: In which branch of the arts is Patricia Neary famous?
A: Ballets
A2: <request><Wiki>Patricia Neary<call>Patricia Neary (born October 27, 1942) is an American ballerina, choreographer \
and ballet director, who has been particularly active in Switzerland. She has also been a highly successful ambassador \
for the Balanchine Trust, bringing George Balanchine's ballets to 60 cities around the globe.<response>
Result=Ballets<submit>

Q: Who won Super Bowl XX?
A: Chicago Bears
A2: <request><Wiki>Super Bowl XX<call>Super Bowl XX was an American football game between the National Football \
Conference (NFC) champion Chicago Bears and the American Football Conference (AFC) champion New England Patriots to \
decide the National Football League (NFL) champion for the 1985 season. The Bears defeated the Patriots by the score \
of 46–10, capturing their first NFL championship (and Chicago's first overall sports victory) since 1963, three years \
prior to the birth of the Super Bowl. Super Bowl XX was played on January 26, 1986 at the Louisiana Superdome in New \
Orleans.<response>
Result=Chicago Bears<submit>

Q: """
"""The two worked examples of TRL's page "Learning Tools"; the question follows."""


def answered(trajectory: Trajectory) -> dict[str, float]:
    """Score 1 if the text behind the tool's answer, or the only text, contains the answer, in any case of its letters.

    Returns:
        `score`; `exact`, 1 if the text submits the answer and nothing else; and `found`, 1 if the tool's answers
        contain the answer.

    Source: `exact_match_reward` of TRL's triviaqa.py, which scores the last text of the model.
    """
    answer = trajectory.prompt.ground_truth.casefold()
    last = trajectory.turns[-1].text.casefold() if trajectory.turns else ""
    shown = [result.text.casefold() for turn in trajectory.turns for result in turn.results]
    return {
        "score": float(answer in last),
        "exact": float(f"result={answer}<submit>" in last),
        "found": float(any(answer in text for text in shown)),
    }
