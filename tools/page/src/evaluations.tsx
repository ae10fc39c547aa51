// Evaluations: accuracy with intervals, and which questions changed sides.

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { short } from "./lines";
import { Chart, shareColor, VirtualList } from "./parts";
import type { Place } from "./place";
import { type File, fileLabel, type Rows } from "./rows";
import type { Store } from "./store";
import { visible } from "./text";
import type { Overview } from "./types";

interface Point {
  mean: number | null;
  low: number | null;
  high: number | null;
}

interface Evaluated {
  source: string;
  steps: number[];
  points: Point[];
  numQuestions: number | null;
}

/** Accuracy of each source over the evaluations, from `val-core/<source>/acc/mean@k`. */
export function readEvaluations({ steps, metrics }: Overview): Evaluated[] {
  const found: Evaluated[] = [];
  for (const name of Object.keys(metrics)) {
    const match = /^val-core\/(.+)\/acc\/mean@\d+$/.exec(name);
    if (!match) continue;
    const key = `val-core/${match[1]}`;
    const kept = steps.map((_, i) => i).filter((i) => metrics[name][i] !== null);
    if (kept.length === 0) continue;
    const at = (column: string, i: number): number | null => metrics[`${key}/${column}`]?.[i] ?? null;
    found.push({
      source: match[1],
      steps: kept.map((i) => steps[i]),
      points: kept.map((i) => ({ mean: metrics[name][i], low: at("acc/ci95_low", i), high: at("acc/ci95_high", i) })),
      numQuestions: at("num_questions", kept.at(-1)!),
    });
  }
  return found.sort((a, b) => Number(b.source === "all") - Number(a.source === "all") || a.source.localeCompare(b.source));
}

export function EvaluationsView({ store, go }: { store: Store; go: (change: Partial<Place>) => void }): JSX.Element {
  const evaluated = useMemo(() => readEvaluations(store.overview), [store.overview]);
  const steps = [...new Set(evaluated.flatMap((one) => one.steps))].sort((a, b) => a - b);
  if (evaluated.length === 0) return <main class="overview"><p class="hint">No evaluation: the run has no held-out prompts (<code>megatron_training.eval_data_path</code>).</p></main>;
  const shownSteps = steps.length > 8 ? [steps[0], ...steps.slice(-7)] : steps;
  return (
    <main class="overview">
      <h2>Accuracy, with 95 % intervals</h2>
      <div class="wide">
        <table>
          <thead><tr><th>task</th><th>questions</th>{shownSteps.map((step) => <th key={step}>step {step}</th>)}</tr></thead>
          <tbody>
            {evaluated.map((one) => (
              <tr key={one.source} class={one.source === "all" ? "all" : ""}>
                <td>{one.source}</td><td>{short(one.numQuestions)}</td>
                {shownSteps.map((step) => <Cell key={step} point={one.points[one.steps.indexOf(step)]} />)}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {steps.length > 1 && (
        <div class="charts">
          {evaluated.map(({ source, steps, points }) => (
            <Chart
              key={source} title={source} note={short(points.at(-1)?.mean)} x={steps} sync="evaluations"
              lines={[{ label: "accuracy", values: points.map((p) => p.mean), low: points.map((p) => p.low), high: points.map((p) => p.high) }]}
            />
          ))}
        </div>
      )}
      <Questions rows={store.rows} go={go} />
    </main>
  );
}

function Cell({ point }: { point?: Point }): JSX.Element {
  if (!point || point.mean === null) return <td>–</td>;
  return <td><b>{point.mean.toFixed(3)}</b> {point.low !== null && <span class="muted">{point.low.toFixed(2)}–{point.high?.toFixed(2)}</span>}</td>;
}

interface Question {
  prompt: string;
  preview: string;
  task: string;
  /** By file: share of right answers, and the first row; null where the question was not asked. */
  answers: ({ share: number; row: number } | null)[];
}

const KINDS = {
  changed: "changed sides", gained: "became right", lost: "became wrong", wrong: "always wrong", all: "all",
} as const;
type Kind = keyof typeof KINDS;

/** Question by question: right or wrong in each evaluation. */
function Questions({ rows, go }: { rows: Rows; go: (change: Partial<Place>) => void }): JSX.Element | null {
  const [kind, setKind] = useState<Kind>("changed");
  const files = rows.files.filter((file) => file.kind === "eval");
  const questions = useMemo(() => readQuestions(rows, files), [rows.num]);
  const found = useMemo(() => questions.filter((question) => isOf(question, kind)), [questions, kind]);
  if (questions.length === 0) return null;
  const kinds = (files.length > 1 ? Object.keys(KINDS) : ["wrong", "all"]) as Kind[];
  const shown = kinds.includes(kind) ? found : questions;
  return (
    <>
      <h2>Question by question</h2>
      <div class="chips" role="group" aria-label="Which questions">
        {kinds.map((name) => (
          <button key={name} type="button" aria-pressed={name === kind} class={name === kind ? "chosen" : ""} onClick={() => setKind(name)}>
            {KINDS[name]} <b>{questions.filter((question) => isOf(question, name)).length}</b>
          </button>
        ))}
      </div>
      <p class="muted">One square for each evaluation: {files.map((file) => fileLabel(file).replace("evaluation at", "step")).join(", ")}. Green: right; red: wrong; between: some of its answers.</p>
      <div class="questions">
        <VirtualList
          num={shown.length} height={28} label="Questions"
          item={(index) => <QuestionRow question={shown[index]} files={files} open={(row) => go({ view: "trajectories", file: rows.fileName(row), id: rows.id(row), tab: "conversation" })} />}
        />
      </div>
    </>
  );
}

function QuestionRow({ question, files, open }: { question: Question; files: File[]; open: (row: number) => void }): JSX.Element {
  return (
    <div class="question">
      <span class="dots">
        {question.answers.map((answer, i) =>
          answer
            ? <button key={i} type="button" aria-label={`${fileLabel(files[i])}: ${short(answer.share)} right`} title={`${fileLabel(files[i])}: ${short(answer.share)} right`} style={{ background: shareColor(answer.share) }} onClick={() => open(answer.row)} />
            : <span key={i} class="gap" />,
        )}
      </span>
      <span class="muted task">{question.task}</span>
      <span class="prompt" title={question.prompt}>{visible(question.preview) || question.prompt}</span>
    </div>
  );
}

function readQuestions(rows: Rows, files: File[]): Question[] {
  const by = new Map<string, Question>();
  files.forEach((file, i) => {
    const number = rows.files.indexOf(file);
    for (let row = file.first; row < file.first + file.count; row += rows.groups[rows.group[row]].count) {
      const { prompt, preview, count } = rows.groups[rows.group[row]];
      const key = `${rows.codeName("set", row)} ${prompt}`;
      const question = by.get(key) ?? { prompt, preview, task: rows.codeName("task", row), answers: files.map(() => null) };
      by.set(key, question);
      let right = 0;
      for (let member = row; member < row + count && rows.file[member] === number; member++) {
        right += rows.isCorrect[member];
      }
      question.answers[i] = { share: right / count, row };
    }
  });
  return [...by.values()];
}

/** Sides as in paired.py: a question is right when more than half of its answers are. */
function isOf({ answers }: Question, kind: Kind): boolean {
  const asked = answers.filter((answer) => answer !== null);
  const [was, is] = [asked[0].share > 0.5, asked[asked.length - 1].share > 0.5];
  if (kind === "gained") return is && !was;
  if (kind === "lost") return was && !is;
  if (kind === "changed") return is !== was;
  if (kind === "wrong") return asked.every((answer) => answer.share === 0);
  return true;
}
