// What happened in the run: its state, warnings, and the curves of its metrics.

import type { JSX } from "preact";
import { useMemo, useState } from "preact/hooks";
import { readEvaluations } from "./evaluations";
import { NO_FILTER } from "./filter";
import { type Line, short } from "./lines";
import { Chart, seconds, Text } from "./parts";
import type { Place } from "./place";
import type { Store } from "./store";
import type { Overview, Warning } from "./types";

const MANY = 30;

/** Charts of the first screen: title, and the metrics in it; a `*` stands for one part of the name. */
const CHARTS: [string, string[]][] = [
  ["Reward", ["critic/score/mean"]],
  ["Parts of the reward", ["reward/*/mean"]],
  ["Loss", ["actor/loss"]],
  ["Entropy", ["actor/entropy"]],
  ["Gradient norm", ["actor/grad_norm"]],
  ["Response length", ["response_length/mean", "response_length/max"]],
  ["Stop reasons, share", ["stop_reason/*"]],
  ["Turns and tool calls", ["num_turns/mean", "tool_call_counts/mean"]],
  ["Calls with errors", ["tools/*/errors", "tools/*/timeouts", "tools/parse_errors", "tools/unknown", "tools/invalid_arguments"]],
  ["Difference of engine and actor", ["training/rollout_probs_diff_mean", "training/rollout_probs_diff_max"]],
  ["KL to the old policy, clipped share", ["actor/ppo_kl", "actor/pg_clipfrac"]],
  ["Time of a step, seconds", ["timing_s/gen", "timing_s/update_actor", "timing_s/old_log_prob", "timing_s/ref", "timing_s/reward", "timing_s/update_weights", "timing_s/save_checkpoint"]],
  ["Tokens per second and device", ["perf/throughput"]],
];

interface Props {
  store: Store;
  go: (change: Partial<Place>) => void;
}

export function OverviewView({ store, go }: Props): JSX.Element {
  const { overview } = store;
  const [wanted, setWanted] = useState("");
  const pick = (step: number): void => {
    const file = store.rows.files.find((one) => one.kind === "step" && one.step === step);
    if (file) go({ view: "trajectories", id: "", filter: filterOf(file.name) });
  };
  const charts = useMemo(() => firstCharts(overview), [overview]);
  const all = Object.keys(overview.metrics).filter((name) => name !== "time");
  const found = wanted.trim() ? all.filter((name) => wanted.trim().split(/\s+/).every((word) => name.includes(word))) : [];
  return (
    <main class="overview">
      <RunFacts store={store} />
      {overview.warnings.length > 0 && <Warnings warnings={overview.warnings} store={store} go={go} />}
      {charts.length === 0 && <p class="hint">No metrics yet. The first step writes some.</p>}
      <div class="charts">
        {charts.map(({ title, x, lines }) => (
          <Chart key={title} title={title} note={lines.length === 1 ? last(lines[0]) : ""} x={x} lines={lines} isSmoothed sync="steps" onPick={pick} />
        ))}
      </div>
      <h2>All metrics</h2>
      <input type="search" class="metric-search" placeholder={`Find among ${all.length} metrics, for example "latency p95"`} aria-label="Find metrics" value={wanted} onInput={(event) => setWanted(event.currentTarget.value)} />
      <div class="charts">
        {found.slice(0, MANY).map((name) => {
          const chart = chartOf(overview, [name], (one) => one);
          return chart && <Chart key={name} title={name} note={last(chart.lines[0])} {...chart} isSmoothed sync="steps" onPick={pick} />;
        })}
      </div>
      {found.length > MANY && <p class="hint">{found.length - MANY} more; write more of the name.</p>}
    </main>
  );
}

function filterOf(file: string): Place["filter"] {
  return { ...NO_FILTER, file };
}

function RunFacts({ store: { overview, rows } }: { store: Store }): JSX.Element {
  const { summary, steps, metrics, contents } = overview;
  const times = (metrics.time ?? []).filter((time) => time !== null);
  const passed = times.length > 1 ? times.at(-1)! - times[0] : NaN;
  const tokens = summary?.tokens ?? (metrics["perf/total_num_tokens"] ?? []).reduce<number>((sum, value) => sum + (value ?? 0), 0);
  return (
    <>
      <dl class="run">
        <div><dt>state</dt><dd>{summary ? "finished" : "not finished"}</dd></div>
        <div><dt>steps</dt><dd>{summary?.steps ?? steps.at(-1) ?? 0}</dd></div>
        <div><dt>trajectories</dt><dd>{rows.num.toLocaleString("en-US")}</dd></div>
        {tokens > 0 && <div><dt>tokens trained on</dt><dd>{Math.round(tokens).toLocaleString("en-US")}</dd></div>}
        <div><dt>time</dt><dd>{seconds(summary?.wall_s ?? passed)}</dd></div>
        <div class="path"><dt>directory</dt><dd>{overview.path}</dd></div>
      </dl>
      {contents.num_left_out > 0 && (
        <p class="notice">
          {contents.num_left_out.toLocaleString("en-US")} of {rows.num.toLocaleString("en-US")} trajectories are in the list and in every count,
          but cannot be opened here: the page reached its limit of {contents.max_mb} MB (<code>--max-mb</code>). <code>rl view RUN --serve</code> shows all.
        </p>
      )}
      {!!contents.num_pending && <p class="notice">{contents.num_pending} files of trajectories are still being read.</p>}
    </>
  );
}

function Warnings({ warnings, store, go }: { warnings: Warning[]; store: Store; go: Props["go"] }): JSX.Element {
  const open = (warning: Warning, id: string): void => {
    const name = store.rows.files.find((file) => file.kind === "step" && file.step === warning.step)?.name;
    if (name) go({ view: "trajectories", file: name, id, tab: "conversation" });
  };
  return (
    <section class="warnings" aria-label="Warnings">
      <h2>{warnings.length === 1 ? "1 warning" : `${warnings.length} warnings`}</h2>
      <ul>
        {warnings.map((warning, i) => (
          <li key={i}>
            <span class={`badge ${warning.action === "stop" ? "bad" : "warn"}`}>{warning.action === "stop" ? "stopped" : "warning"}</span>
            <span class="muted">step {warning.step}</span> <Text text={warning.text} />
            {warning.trajectories.length > 0 && (
              <p class="muted">seen in {warning.trajectories.map((id) => <button key={id} class="link" onClick={() => open(warning, id)}>{id}</button>)}</p>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

interface Drawn {
  title: string;
  x: number[];
  lines: Line[];
}

/** The charts of the first screen that the run has metrics for; accuracy comes after the reward. */
function firstCharts(overview: Overview): Drawn[] {
  const charts: Drawn[] = [];
  for (const [title, patterns] of CHARTS) {
    const names = patterns.flatMap((pattern) => matching(overview, pattern));
    const chart = chartOf(overview, names, labeling(names));
    const isRepeated = title === "Parts of the reward" && names.length < 2;
    if (chart && !isRepeated) charts.push({ title, ...chart });
    if (title === "Reward") {
      for (const { source, steps, points } of readEvaluations(overview)) {
        if (source !== "all" && !source.endsWith("/all")) continue;
        const line = { label: "accuracy", values: points.map((p) => p.mean), low: points.map((p) => p.low), high: points.map((p) => p.high) };
        charts.push({ title: source === "all" ? "Evaluation accuracy, 95 % interval" : `Accuracy, ${source}`, x: steps, lines: [line] });
      }
    }
  }
  return charts;
}

function matching({ metrics }: Overview, pattern: string): string[] {
  const isShown = (name: string): boolean => metrics[name]?.some((value) => value) ?? false; // not all 0
  if (!pattern.includes("*")) return [pattern].filter(isShown);
  const expression = new RegExp(`^${pattern.replace("*", "[^/]+")}$`);
  return Object.keys(metrics).filter((name) => expression.test(name) && isShown(name));
}

/** Some metrics over the steps at which one of them has a value. */
function chartOf({ steps, metrics }: Overview, names: string[], label: (name: string) => string): Omit<Drawn, "title"> | null {
  const kept = steps.map((_, i) => i).filter((i) => names.some((name) => metrics[name][i] != null));
  if (kept.length === 0) return null;
  return { x: kept.map((i) => steps[i]), lines: names.map((name) => ({ label: label(name), values: kept.map((i) => metrics[name][i]) })) };
}

/** Labels without the parts that all names of a chart begin or end with. */
function labeling(names: string[]): (name: string) => string {
  if (names.length === 1) return () => "value";
  const parts = names.map((name) => name.split("/"));
  const isShared = (part: (of: string[]) => string | undefined): boolean => new Set(parts.map(part)).size === 1;
  let [first, last] = [0, 0];
  while (isShared((of) => of[first])) first += 1;
  while (isShared((of) => of.at(-1 - last))) last += 1;
  return (name) => name.split("/").slice(first, last ? -last : undefined).join("/");
}

function last(line: Line): string {
  return short(line.values.findLast((value) => value !== null));
}
