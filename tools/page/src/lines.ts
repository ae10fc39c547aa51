// Line charts of metrics over steps, drawn by uPlot in the colors of the page.

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

const SMOOTHED_FROM = 60;

/** One line of a chart. */
export interface Line {
  label: string;
  /** As long as `x`; null where there is no value. */
  values: (number | null)[];
  /** Ends of a band around the line, such as a confidence interval. */
  low?: (number | null)[];
  high?: (number | null)[];
  /** A CSS color; by default the page's color of that position. */
  color?: string;
  /** Draw points only, without a line between them. */
  isPoints?: boolean;
}

export interface ChartOptions {
  /** Steps, ascending. */
  x: number[];
  lines: Line[];
  height?: number;
  /** Charts with the same key show the cursor at the same step. */
  sync?: string;
  /** Draw long lines faintly, with their moving average in front. */
  isSmoothed?: boolean;
  /** Called with a step that was clicked. */
  onPick?: (x: number) => void;
}

/** Draw a chart into an element, as wide as the element. It follows the element's width and the color scheme. */
export function drawLines(target: HTMLElement, options: ChartOptions): { destroy: () => void } {
  let plot = make(target, options);
  const resized = new ResizeObserver(() => plot.setSize({ width: target.clientWidth, height: options.height ?? 180 }));
  resized.observe(target);
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const redraw = (): void => {
    plot.destroy();
    plot = make(target, options);
  };
  scheme.addEventListener("change", redraw);
  const destroy = (): void => {
    resized.disconnect();
    scheme.removeEventListener("change", redraw);
    plot.destroy();
  };
  return { destroy };
}

/** Short text of a number: 4 significant digits, powers of ten where it is very small or large. */
export function short(value: number | null | undefined): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}

/** The bias-corrected exponential moving average of the values that are there. */
function smooth(values: (number | null)[], weight = 0.9): (number | null)[] {
  let [total, norm] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    [total, norm] = [weight * total + value, weight * norm + 1];
    return total / norm;
  });
}

function make(target: HTMLElement, options: ChartOptions): uPlot {
  const style = getComputedStyle(document.documentElement);
  const color = (name: string): string => style.getPropertyValue(name).trim();
  const data: (number | null)[][] = [options.x];
  const series: uPlot.Series[] = [{ label: "step", value: (_, step) => (step === null ? "–" : String(step)) }];
  const bands: uPlot.Band[] = [];
  const colors: string[] = []; // by series, for the legend
  options.lines.forEach((line, index) => {
    const stroke = line.color ?? color(`--line-${index % 8}`);
    if (line.low && line.high) {
      bands.push({ series: [data.length, data.length + 1], fill: `color-mix(in srgb, ${stroke} 18%, transparent)` });
      for (const edge of [line.high, line.low]) {
        data.push(edge);
        series.push({ show: true, stroke: "transparent", points: { show: false }, class: "hidden", label: "" });
      }
    }
    colors[series.length] = stroke;
    const isSmoothed = options.isSmoothed && line.values.length >= SMOOTHED_FROM;
    if (isSmoothed) {
      data.push(line.values);
      series.push({ label: line.label, stroke: `color-mix(in srgb, ${stroke} 30%, transparent)`, width: 1, points: { show: false }, spanGaps: true, value: (_, value) => short(value) });
    }
    data.push(isSmoothed ? smooth(line.values) : line.values);
    const points = { show: line.values.length < 60 || line.isPoints, size: 5, fill: stroke, stroke };
    const paths = line.isPoints ? () => null : undefined;
    series.push({
      label: line.label, stroke, width: 1.75, points, paths, spanGaps: true, value: (_, value) => short(value),
      class: isSmoothed ? "hidden" : undefined,
    });
  });
  const axis = { stroke: color("--muted"), font: "11px system-ui", ticks: { show: false } };
  const grid = { stroke: color("--rule"), width: 1 };
  const plot = new uPlot(
    {
      width: Math.max(60, target.clientWidth),
      height: options.height ?? 180,
      scales: { x: { time: false, range: stepRange }, y: { range: { min: { pad: 0.1 }, max: { pad: 0.1 } } } },
      axes: [
        { ...axis, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4], size: 28 },
        { ...axis, grid, size: 56, values: (_, ticks) => ticks.map(short) },
      ],
      legend: { show: true, live: true, markers: { width: 0, fill: (_, i) => colors[i] } },
      cursor: { sync: options.sync ? { key: options.sync, setSeries: false } : undefined, drag: { x: true, y: false } },
      series,
      bands,
      hooks: { setCursor: [showLast], ready: [showLast] },
    },
    data as uPlot.AlignedData,
    target,
  );
  let pressed = 0;
  plot.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
  plot.over.addEventListener("click", (event) => {
    const index = plot.cursor.idx;
    const isDrag = Math.abs(event.clientX - pressed) > 3;
    if (index !== null && index !== undefined && !isDrag) options.onPick?.(options.x[index]);
  });
  return plot;
}

/** Without a cursor the legend shows the last step. */
function showLast(plot: uPlot): void {
  if (plot.cursor.idx == null || (plot.cursor.left ?? -1) < 0) plot.setLegend({ idx: plot.data[0].length - 1 }, false);
}

function stepRange(_: uPlot, low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  return low === high ? [low - 1, high + 1] : [low, high];
}
