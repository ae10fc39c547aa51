// The data of a page, as rl/observability/page writes them, and the records of rl/observability/trajectories.py.

export interface Overview {
  name: string;
  path: string;
  steps: number[];
  metrics: Record<string, (number | null)[]>;
  warnings: Warning[];
  config: string;
  versions: string;
  summary: { steps: number; tokens: number; wall_s: number } | null;
  contents: Contents;
}

export interface Contents {
  blocks: { num_rows: number; records: number[] }[];
  /** Names of chunks of records that the page does not have. */
  left_out: string[];
  num_left_out: number;
  /** Chunks of single steps, with the ids of the trajectories that they cover. */
  details: Record<string, string[]>;
  /** The limit of the page; absent when served. */
  max_mb?: number;
  /** Files that the server has not read yet. */
  num_pending?: number;
}

export interface Warning {
  step: number;
  name: string;
  value: number | null;
  threshold: number | null;
  action: string;
  text: string;
  trajectories: string[];
}

/** One chunk of the index, columns by trajectory; see rows.py. */
export interface RowChunk {
  num_rows: number;
  files: { name: string; first: number; count: number }[];
  names: string[];
  groups: { prompt: string; preview: string; first: number; count: number }[];
  columns: Record<string, (number | null)[]>;
  rewards: Record<string, (number | null)[]>;
  /** The end of the last turn. */
  endings: string[];
  tool_errors: number[][];
}

export interface Message {
  role: string;
  content: unknown;
  tool_calls?: unknown;
}

export interface Call {
  name: string;
  arguments: Record<string, unknown>;
  raw: string;
  error: string | null;
}

export interface Result {
  name: string;
  text: string;
  status: string;
  is_truncated: boolean;
  queue_s: number;
  run_s: number;
  num_failed_attempts?: number;
  reward: number | null;
  start_s?: number;
}

export interface Turn {
  text: string;
  thoughts?: [number, number][];
  num_tokens: number;
  calls: Call[];
  results: Result[];
  /** What the agent said before the turn, where it leads the conversation itself. */
  asked?: Message[];
  messages?: Message[];
  /** Number of its token sequence, from 0. */
  sequence?: number;
  is_cut?: boolean;
  generate_s: number;
  tool_s: number;
  start_s?: number;
}

/** How a token sequence began. */
export interface Start {
  why: string;
  /** Number of the sequence whose first tokens it begins with. */
  branches_from: number | null;
  num_copied: number;
}

export interface Trajectory {
  id: string;
  data_source: string;
  messages: Message[];
  ground_truth: string;
  turns: Turn[];
  stop_reason: string;
  score: number | null;
  rewards: Record<string, number | null>;
  reward_texts?: Record<string, string>;
  turn_rewards?: number[];
  kl_penalty?: number;
  /** The score after shaping and penalties, from which advantages follow. */
  reward?: number | null;
  advantage?: number | null;
  exclusion?: string | null;
  reward_error: string | null;
  environment?: string | null;
  failure?: string | null;
  num_sampled: number;
  response_length: number;
  policy_versions: number[];
  starts?: Start[];
  wall_s: number;
  started_at?: number;
  worker?: number;
  reward_s?: number;
}

/** The recorded tokens of one sequence; lists are as long as `pieces`. */
export interface Tokens {
  trajectory_id: string;
  sequence: number;
  pieces: string[];
  token_ids: number[];
  loss_mask: number[];
  prompt_length: number;
  values: Record<string, (number | null)[]>;
}

export interface Span {
  who: string;
  name: string;
  start: number;
  end: number;
  /** Id of the trajectory that the work was for. */
  trajectory: string | null;
}
