// The address of what is shown: `#overview`, `#trajectories?task=sums`, `#step_000012/train-17/3?tab=tokens&task=sums`.

import { useEffect, useState } from "preact/hooks";
import { type Filter, NO_FILTER } from "./filter";

export const VIEWS = ["overview", "trajectories", "evaluations", "timeline", "configuration"] as const;
export type View = (typeof VIEWS)[number];
export const TABS = ["conversation", "group", "timeline", "tokens", "record"] as const;
export type Tab = (typeof TABS)[number];

export interface Place {
  view: View;
  /** Of the trajectory, or of the timeline. */
  file: string;
  id: string;
  tab: Tab;
  filter: Filter;
}

/** Read the part of an address after `#`. */
export function parsePlace(hash: string): Place {
  const [path, query = ""] = hash.replace(/^#/, "").split("?");
  const [head, ...rest] = path.split("/").map(decode);
  const values = new URLSearchParams(query);
  const filter = { ...NO_FILTER };
  for (const name of Object.keys(filter) as (keyof Filter)[]) filter[name] = values.get(name) ?? filter[name];
  const tab = TABS.find((name) => name === values.get("tab")) ?? "conversation";
  const view = VIEWS.find((name) => name === head);
  if (view) return { view, file: rest[0] ?? "", id: "", tab, filter };
  if (/^(step|eval)_\d+$/.test(head)) return { view: "trajectories", file: head, id: rest.join("/"), tab, filter };
  return { view: "overview", file: "", id: "", tab, filter };
}

/** Undo `parsePlace`. */
export function formatPlace({ view, file, id, tab, filter }: Place): string {
  const values = new URLSearchParams();
  if (view === "trajectories") {
    if (id && tab !== "conversation") values.set("tab", tab);
    for (const [name, value] of Object.entries(filter)) if (value !== NO_FILTER[name as keyof Filter]) values.set(name, value);
  }
  const head = view !== "trajectories" ? (file ? [view, file] : [view]) : id ? [file, ...id.split("/")] : [view];
  const query = values.toString();
  return `#${head.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/** The current place, and a function that changes parts of it. `replace` keeps the history short, as when typing. */
export function usePlace(): [Place, (change: Partial<Place>, replace?: boolean) => void] {
  const [place, setPlace] = useState(() => parsePlace(location.hash));
  useEffect(() => {
    const read = (): void => setPlace(parsePlace(location.hash));
    addEventListener("hashchange", read);
    return () => removeEventListener("hashchange", read);
  }, []);
  const go = (change: Partial<Place>, replace = false): void => {
    const next = { ...parsePlace(location.hash), ...change };
    const hash = formatPlace(next);
    if (hash === location.hash) return;
    if (replace) history.replaceState(null, "", hash);
    else history.pushState(null, "", hash);
    setPlace(next);
  };
  return [place, go];
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray % typed by hand
  }
}
