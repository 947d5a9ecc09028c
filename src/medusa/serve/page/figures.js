// Figures of an answer: tokens, steps and speed.

import { rounded } from "./chart.js";

const WINDOW = 6; // steps over which the speed is averaged

/** Counts what arrives of an answer. */
export class Figures {
  constructor() {
    this.steps = []; // decoding steps; the prefill is not one
    this.first = null; // when the first tokens came, in milliseconds
    this.last = null;
    this.tokens = 0; // after the first ones
    this.speeds = []; // tokens per second after each step, by the server's clock
  }

  /** Take a step into account that arrived at a time in milliseconds. */
  add(step, now) {
    this.last = now;
    if (this.first === null) this.first = now;
    else this.tokens += step.tokens.length;
    if (step.step === 0) return;
    this.steps.push(step);
    const recent = this.steps.slice(-WINDOW);
    const total = (value) => recent.reduce((sum, each) => sum + value(each), 0);
    const seconds = total((each) => each.milliseconds) / 1000;
    this.speeds.push(seconds ? total((each) => each.tokens.length) / seconds : 0);
  }

  /** Tokens that each step gave. */
  get lengths() {
    return this.steps.map((step) => step.tokens.length);
  }

  /** Tokens per second from the first token to the last, by this browser's clock; 0 if unknown. */
  get speed() {
    const seconds = this.first === null ? 0 : (this.last - this.first) / 1000;
    return seconds > 0.001 ? this.tokens / seconds : 0;
  }

  /** Tokens per step. */
  get rate() {
    const sum = this.lengths.reduce((total, length) => total + length, 0);
    return this.steps.length ? sum / this.steps.length : 0;
  }

  /** The figures in one line; `usage` is what the server reports at the end. */
  inWords(usage) {
    const tokens = usage?.completion_tokens ?? this.tokens + 1;
    const steps = usage?.medusa?.steps ?? this.steps.length;
    const rate = usage?.medusa?.acceleration_rate ?? this.rate;
    const parts = [count(tokens, "token"), count(steps, "step"), `${rate.toFixed(2)} tokens/step`];
    if (this.speed) parts.push(`${rounded(this.speed)} tokens/s`);
    return parts.join(" · ");
  }
}

function count(number, name) {
  return `${number} ${name}${number === 1 ? "" : "s"}`;
}
