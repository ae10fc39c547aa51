// Timelines: the trajectories of a group, and a step with all its workers. One lane each, drawn on a canvas.

import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { short } from "./lines";
import { seconds } from "./parts";
import type { Span, Trajectory } from "./types";

const LANE = 22;
const LABEL = 132;
const AXIS = 22;
const MOST = 600; // a canvas cannot be arbitrarily high

export interface Lane {
  label: string;
  spans: { name: string; start: number; end: number; note?: string; trajectory?: string }[];
  isChosen?: boolean;
}

const COLORS: Record<string, string> = {
  generation: "--model", generate: "--model", tool: "--tool", "tool queue": "--queue", wait: "--queue", reward: "--call",
  waiting: "--none", trajectory: "--none", step: "--none",
};
/** Spans that other spans of the lane lie within: drawn thin, behind them. */
const ENCLOSING = new Set(["waiting", "trajectory", "step"]);

/** Spans of a trajectory, in seconds since it began; exact where the run recorded when each part began. */
export function trajectorySpans(record: Trajectory): { spans: Lane["spans"]; isExact: boolean } {
  const spans: Lane["spans"] = [];
  const isExact = !!record.started_at && record.turns.every((turn) => turn.start_s !== undefined); // 0: not recorded
  let at = 0;
  record.turns.forEach((turn, i) => {
    const start = isExact ? turn.start_s! : at;
    if (start > at + 1e-4) spans.push({ name: "waiting", start: at, end: start });
    at = start + turn.generate_s;
    spans.push({ name: "generation", start, end: at, note: `turn ${i + 1}, ${turn.num_tokens} tokens` });
    let end = at + (isExact ? 0 : turn.tool_s);
    for (const result of turn.results) {
      const began = (isExact ? result.start_s : undefined) ?? at;
      const ran = began + result.queue_s;
      if (result.queue_s > 0) spans.push({ name: "tool queue", start: began, end: ran, note: result.name });
      spans.push({ name: "tool", start: ran, end: ran + result.run_s, note: `${result.name}: ${result.status}` });
      end = Math.max(end, ran + result.run_s);
    }
    at = end;
  });
  if (record.wall_s > at + 1e-3) spans.push({ name: "waiting", start: at, end: record.wall_s });
  if (record.reward_s) spans.push({ name: "reward", start: record.wall_s, end: record.wall_s + record.reward_s });
  return { spans, isExact };
}

/** The trajectories of a group, one lane each, by the clock where the run recorded it. */
export function GroupTimeline({ records, chosen, open }: {
  records: Trajectory[]; chosen: string; open: (trajectory: string) => void;
}): JSX.Element {
  const starts = records.map((record) => record.started_at);
  const hasClock = starts.every(Boolean);
  const origin = hasClock ? Math.min(...(starts as number[])) : 0;
  const found = records.map(trajectorySpans);
  const lanes = records.map((record, i) => {
    const offset = hasClock ? record.started_at! - origin : 0;
    const spans = found[i].spans.map((span) => ({ ...span, start: span.start + offset, end: span.end + offset, trajectory: record.id }));
    return { label: `/${record.id.split("/").at(-1)}  ${short(record.score)}`, spans, isChosen: record.id === chosen };
  });
  const isExact = found.every((one) => one.isExact);
  return (
    <>
      {!isExact && <p class="hint">This run did not record when each part began: the parts are in their order, and the time that belongs to none of them comes last.</p>}
      {!hasClock && <p class="hint">Every lane begins at 0, because the run did not record when each trajectory began.</p>}
      <Lanes lanes={lanes} open={open} />
    </>
  );
}

/** A step: one lane for each of who did something; spans that overlap take more lanes. */
export function StepTimeline({ spans, open }: { spans: Span[]; open: (trajectory: string) => void }): JSX.Element {
  const lanes = useMemo(() => packed(spans), [spans]);
  return (
    <>
      {lanes.length > MOST && <p class="hint">The first {MOST} of {lanes.length} lanes. <code>rl timeline</code> writes all of them for Perfetto.</p>}
      <Lanes lanes={lanes.slice(0, MOST)} open={open} />
    </>
  );
}

function packed(spans: Span[]): Lane[] {
  const origin = spans.reduce((low, span) => Math.min(low, span.start), Infinity);
  const by = new Map<string, Lane[]>();
  const ends = new Map<Lane, number>();
  const laneOf = new Map<string, Lane>();
  for (const { who, name, start, end, trajectory } of [...spans].sort((a, b) => a.start - b.start || b.end - a.end)) {
    const lanes = by.get(who) ?? [];
    by.set(who, lanes);
    const key = trajectory ? `${who} ${trajectory}` : "";
    let lane = laneOf.get(key) ?? lanes.find((one) => (ends.get(one) ?? 0) <= start + 1e-6);
    if (!lane) lanes.push((lane = { label: lanes.length ? "" : who, spans: [] }));
    if (trajectory) laneOf.set(key, lane); // what belongs to a trajectory lies within its span
    if (trajectory || !ENCLOSING.has(name)) ends.set(lane, Math.max(ends.get(lane) ?? 0, end));
    lane.spans.push({ name, start: start - origin, end: end - origin, note: trajectory ?? who, trajectory: trajectory ?? undefined });
  }
  const order = (who: string): string => (who === "driver" ? "0" : who.startsWith("actor") ? `1${who}` : `2${who}`);
  return [...by.entries()].sort(([a], [b]) => order(a).localeCompare(order(b), "en", { numeric: true })).flatMap(([, lanes]) => lanes);
}

function Lanes({ lanes, open }: { lanes: Lane[]; open: (trajectory: string) => void }): JSX.Element {
  const canvas = useRef<HTMLCanvasElement>(null);
  const total = useMemo(() => Math.max(1e-6, ...lanes.flatMap((lane) => lane.spans.map((span) => span.end))), [lanes]);
  const names = useMemo(() => [...new Set(lanes.flatMap((lane) => lane.spans.map((span) => span.name)))], [lanes]);
  const [window_, setWindow] = useState<[number, number]>([0, total]);
  const [readout, setReadout] = useState("");
  const [width, setWidth] = useState(600);
  useEffect(() => setWindow([0, total]), [total]);
  useEffect(() => {
    const frame = canvas.current!.parentElement!;
    const resized = new ResizeObserver(() => setWidth(frame.clientWidth));
    resized.observe(frame);
    return () => resized.disconnect();
  }, []);
  useEffect(() => {
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    const draw = (): void => drawLanes(canvas.current!, lanes, names, window_, width);
    draw();
    scheme.addEventListener("change", draw);
    return () => scheme.removeEventListener("change", draw);
  }, [lanes, window_, width]);
  const timeAt = (x: number): number => window_[0] + ((x - LABEL) / Math.max(1, width - LABEL)) * (window_[1] - window_[0]);
  const spanAt = (event: MouseEvent): Lane["spans"][number] | undefined => {
    const time = timeAt(event.offsetX);
    const lane = lanes[Math.floor((event.offsetY - AXIS) / LANE)];
    return lane?.spans.findLast((one) => one.start <= time && time <= one.end);
  };
  const point = (event: MouseEvent): void => {
    const span = spanAt(event);
    setReadout(span ? `${span.name}${span.note ? `, ${span.note}` : ""}: ${seconds(span.end - span.start)}, from ${seconds(span.start)} to ${seconds(span.end)}` : "");
  };
  const zoom = (factor: number, around = (window_[0] + window_[1]) / 2): void => {
    const size = Math.min(total, (window_[1] - window_[0]) * factor);
    const share = (around - window_[0]) / (window_[1] - window_[0]);
    const low = Math.max(0, Math.min(total - size, around - share * size));
    setWindow([low, low + size]);
  };
  const move = (share: number): void => {
    const size = window_[1] - window_[0];
    const low = Math.max(0, Math.min(total - size, window_[0] + share * size));
    setWindow([low, low + size]);
  };
  return (
    <div class="lanes">
      <div class="legend">
        {names.map((name) => <span key={name}><i style={{ background: colorOf(name, names) }} />{name} <span class="muted">{seconds(sumOf(lanes, name))}</span></span>)}
        <span class="tools">
          <button type="button" aria-label="Zoom in" onClick={() => zoom(0.5)}>+</button>
          <button type="button" aria-label="Zoom out" onClick={() => zoom(2)}>−</button>
          <button type="button" aria-label="Earlier" onClick={() => move(-0.5)}>←</button>
          <button type="button" aria-label="Later" onClick={() => move(0.5)}>→</button>
        </span>
      </div>
      <div class="canvas">
        <canvas
          ref={canvas} role="img" aria-label={`Timeline of ${lanes.length} lanes over ${seconds(total)}`} onMouseMove={point} onClick={(event) => { const id = spanAt(event)?.trajectory; if (id) open(id); }} onMouseLeave={() => setReadout("")}
          onWheel={(event) => { if (event.ctrlKey) { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8, timeAt(event.offsetX)); } }}
        />
      </div>
      <p class="readout" aria-live="polite">{readout || "Point at a span for its times; a click opens its trajectory. Ctrl and the wheel zoom."}</p>
    </div>
  );
}

function drawLanes(canvas: HTMLCanvasElement, lanes: Lane[], names: string[], [low, high]: [number, number], width: number): void {
  const ratio = devicePixelRatio || 1;
  const height = AXIS + lanes.length * LANE + 4;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${canvas.height / ratio}px`;
  const style = getComputedStyle(document.documentElement);
  const color = (name: string): string => style.getPropertyValue(name).trim();
  const ink = canvas.getContext("2d")!;
  ink.scale(ratio, ratio);
  ink.font = "11px system-ui";
  ink.textBaseline = "middle";
  const x = (time: number): number => LABEL + ((time - low) / (high - low)) * (width - LABEL - 8);
  for (const tick of ticks(low, high, Math.max(2, Math.floor((width - LABEL) / 90)))) {
    ink.fillStyle = color("--rule");
    ink.fillRect(x(tick), AXIS - 6, 1, height);
    ink.fillStyle = color("--muted");
    ink.fillText(`${Number(tick.toPrecision(6))} s`, x(tick) + 3, AXIS / 2);
  }
  lanes.forEach((lane, i) => {
    const y = AXIS + i * LANE;
    if (lane.isChosen) {
      ink.fillStyle = color("--chosen");
      ink.fillRect(0, y, width, LANE);
    }
    for (const span of lane.spans) {
      if (span.end < low || span.start > high) continue;
      const from = Math.max(LABEL, x(span.start));
      const to = Math.max(from + 1, x(span.end));
      const property = colorOf(span.name, names).slice(4, -1);
      ink.fillStyle = color(property);
      const isThin = ENCLOSING.has(span.name);
      ink.globalAlpha = isThin ? 0.6 : 0.9;
      ink.fillRect(from, y + (isThin ? 9 : 4), to - from - (to - from > 3 ? 0.5 : 0), isThin ? 4 : LANE - 8);
      ink.globalAlpha = 1;
      if (to - from > 7 * span.name.length && !isThin) {
        ink.fillStyle = color("--paper");
        ink.fillText(span.name, from + 4, y + LANE / 2);
      }
    }
    ink.fillStyle = color(lane.isChosen ? "--ink" : "--muted");
    ink.fillText(lane.label, 4, y + LANE / 2, LABEL - 10);
  });
}

function colorOf(name: string, names: string[]): string {
  const known = COLORS[name] ?? COLORS[name.split(" ")[0]];
  return `var(${known ?? `--line-${names.filter((one) => !COLORS[one.split(" ")[0]]).indexOf(name) % 8}`})`;
}

function sumOf(lanes: Lane[], name: string): number {
  return lanes.reduce((sum, lane) => sum + lane.spans.reduce((part, span) => part + (span.name === name ? span.end - span.start : 0), 0), 0);
}

function ticks(low: number, high: number, most: number): number[] {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) ?? rough;
  const found: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) found.push(tick);
  return found;
}
