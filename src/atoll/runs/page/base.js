"use strict";
// Small parts that everything else uses: elements, numbers as text, colours, the tooltip.

const Base = (() => {
  // --- elements -------------------------------------------------------------------------------------------

  const $ = (selector, from = document) => from.querySelector(selector);

  /** An element. Children that are not nodes become text, never markup: what a log says is not trusted. */
  function h(tag, props, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(props || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
    return element;
  }

  /** Put text in an element, touching the page only where it changed. */
  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  /** A row of buttons of which one is pressed. */
  function segments(host, options, chosen, pick) {
    const buttons = options.map(([value, label]) =>
      h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => press(value) }, label));
    const press = (value) => {
      options.forEach(([each], i) => buttons[i].setAttribute("aria-pressed", String(each === value)));
      pick(value);
    };
    host.replaceChildren(...buttons);
  }

  /** Label and value pairs in a <dl>. A pair may carry a remark. */
  function figures(host, pairs) {
    const key = JSON.stringify(pairs);
    if (host.dataset.key === key) return;
    host.dataset.key = key;
    host.replaceChildren(...pairs.map(([label, value, remark]) =>
      h("div", null, h("dt", null, label), h("dd", null, h("b", null, value), remark ? h("small", null, remark) : null))));
  }

  /** A text to copy, with a button that does it. */
  function copyable(text) {
    const button = h("button", { type: "button", class: "quiet", onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        return;
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } }, "Copy");
    const code = h("code", null, text);
    return h("span", { class: "copyable" }, code, button);
  }

  /** A path as a shell takes it. */
  const verbOf = (start) => (start.workers ? "train" : start.parties ? "vertical run" : "run"); // the command that plays such a run
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, `'"'"'`)}'`);

  // --- numbers as text ------------------------------------------------------------------------------------

  const known = (value) => typeof value === "number" && Number.isFinite(value);

  function number(value, digits = 4) {
    if (!known(value)) return "–";
    if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e7)) return value.toExponential(2);
    return String(Number(value.toPrecision(digits)));
  }

  const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : "–");
  const percent = (value, digits = 1) => (known(value) ? `${(100 * value).toFixed(digits)}\u00a0%` : "–");
  const score = (measure, value, digits) => (measure === "accuracy" ? percent(value, digits) : number(value));

  /** A score on an axis whose lines are `step` apart: no more digits than tell them apart. */
  const tickScore = (measure) => (value, step) => (measure === "accuracy" ? percent(value, step < 0.0099 ? 1 : 0) : number(value, 3));

  /** A difference of two scores, with its sign. */
  function gain(measure, value, digits = 1) {
    if (!known(value)) return "–";
    const text = measure === "accuracy" ? Math.abs(100 * value).toFixed(digits) : number(Math.abs(value), 3);
    return `${Number(text) === 0 ? "" : value < 0 ? "−" : "+"}${text}${measure === "accuracy" ? " pts" : ""}`;
  }

  function bytes(value, digits = 3) {
    if (!known(value)) return "–";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let unit = 0;
    while (Math.abs(value) >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return `${Number(value.toPrecision(digits))} ${units[unit]}`;
  }

  function joules(value) {
    if (!known(value)) return "–";
    const units = ["J", "kJ", "MJ", "GJ"];
    let unit = 0;
    while (Math.abs(value) >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
    return `${Number(value.toPrecision(3))} ${units[unit]}`;
  }

  function duration(seconds) {
    if (!known(seconds)) return "–";
    if (seconds === 0) return "0 s";
    if (seconds < 0.001) return `${Number((seconds * 1e6).toPrecision(2))} µs`;
    if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
    if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
    const s = Math.round(seconds);
    if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
    if (s < 172800) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }

  function clock(time) {
    if (!known(time)) return "–";
    const d = new Date(time * 1000);
    const two = (v) => String(v).padStart(2, "0");
    return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
  }

  const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

  // --- arrays ---------------------------------------------------------------------------------------------

  /** p10, median and p90 or other quantiles, linear between neighbours; null where nothing is known. */
  function quantiles(values, parts = [0.1, 0.5, 0.9]) {
    const sorted = Float64Array.from(Array.from(values).filter(known)).sort();
    if (!sorted.length) return null;
    return parts.map((part) => {
      const place = part * (sorted.length - 1);
      const low = Math.floor(place);
      const high = Math.min(low + 1, sorted.length - 1);
      return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
    });
  }

  /** Inequality, 0 (all equal) to 1. */
  function gini(values) {
    const sorted = Float64Array.from(values).sort();
    let sum = 0;
    let weighted = 0;
    for (let i = 0; i < sorted.length; i++) {
      sum += sorted[i];
      weighted += (2 * (i + 1) - sorted.length - 1) * sorted[i];
    }
    return sum > 0 ? weighted / (sorted.length * sum) : 0;
  }

  /** About `n` round numbers between two others. */
  function ticks(low, high, n = 5, whole = false) {
    if (!(high > low)) return [low];
    const rough = (high - low) / n;
    const power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    if (whole) step = Math.max(1, Math.round(step));
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-6; t += step) found.push(Number(t.toPrecision(12)));
    return found;
  }

  // --- colours --------------------------------------------------------------------------------------------

  const RAMPS = { // from the ground of the page outwards, so that more always stands out more
    light: {
      up: ["#f0f4ee", "#d3e9d1", "#a1d5c4", "#5fb5bf", "#2c8cb5", "#1d5f9f", "#1a3771"],
      both: ["#96440a", "#d4853a", "#f0cfa8", "#f3f2ee", "#b2cde4", "#5892c6", "#184f8e"],
    },
    dark: {
      up: ["#1b222d", "#1f3658", "#245487", "#2b79a6", "#49a2ae", "#8bccb1", "#e6f0bd"],
      both: ["#f5a85c", "#bb783b", "#634832", "#24282e", "#304b67", "#4783be", "#90c7ff"],
    },
  };
  const GROUPS = {
    light: ["#0b62c4", "#c24e08", "#0b8a68", "#9b3f93", "#a87900", "#525b66", "#2596c9", "#83360f"],
    dark: ["#6cb0ff", "#ff9c60", "#4fd1a5", "#e39ad9", "#e8c14f", "#aeb6c0", "#86d6f8", "#dc9f78"],
  };
  let variables = new Map();
  let tables = new Map();

  const isDark = () => document.documentElement.dataset.theme === "dark";

  /** The value of a colour variable of the style sheet. */
  function color(name) {
    if (!variables.has(name)) {
      variables.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
    }
    return variables.get(name);
  }

  const groupColor = (index) => GROUPS[isDark() ? "dark" : "light"][index % GROUPS.light.length];

  function forgetColors() {
    variables = new Map();
    tables = new Map();
  }

  /** 256 colours of a ramp ("up" or "both"), as css texts and as pixels for ImageData. */
  function ramp(name) {
    if (!tables.has(name)) {
      const stops = RAMPS[isDark() ? "dark" : "light"][name].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
      const css = [];
      const pixels = new Uint32Array(256);
      for (let i = 0; i < 256; i++) {
        const place = (i / 255) * (stops.length - 1);
        const low = Math.min(Math.floor(place), stops.length - 2);
        const [r, g, b] = [0, 1, 2].map((c) => Math.round(stops[low][c] + (stops[low + 1][c] - stops[low][c]) * (place - low)));
        css.push(`rgb(${r},${g},${b})`);
        pixels[i] = (255 << 24) | (b << 16) | (g << 8) | r;
      }
      tables.set(name, { css, pixels });
    }
    return tables.get(name);
  }

  /** Lightness of a colour ("#rrggbb" or "rgb(r,g,b)") as WCAG has it, 0 to 1. */
  function luminance(css) {
    const parts = css.startsWith("#") ? [1, 3, 5].map((i) => parseInt(css.slice(i, i + 2), 16)) : css.match(/\d+/g).map(Number);
    const [r, g, b] = parts.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  /** How well one colour reads on another, 1 to 21. */
  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  /** Black or white, whichever reads better on a colour: one of them has at least 4.5 to 1. */
  const inkOn = (css) => (contrast("#000000", css) > contrast("#ffffff", css) ? "#000000" : "#ffffff");

  /** Index into a ramp for a value between two ends. */
  const shade = (value, low, high) => Math.max(0, Math.min(255, Math.round(((value - low) / (high - low || 1)) * 255)));

  /** A legend of a ramp: the ends in words, the colours between. */
  function rampKey(host, name, low, high, title) {
    const css = ramp(name).css;
    const bar = h("i", { class: "ramp" });
    bar.style.background = `linear-gradient(90deg, ${[0, 43, 85, 128, 170, 213, 255].map((i) => css[i]).join(", ")})`;
    host.replaceChildren(h("span", { class: "dim" }, title), h("span", { class: "ends" }, h("span", null, low), bar, h("span", null, high)));
  }

  // --- the tooltip ----------------------------------------------------------------------------------------

  /** Show lines of text beside the pointer; the first is the heading. */
  function tip(event, lines) {
    const box = $("#tip");
    if (!lines) { box.hidden = true; return; }
    const home = document.querySelector("dialog[open]") || document.body; // a dialog is above all else
    if (box.parentNode !== home) home.append(box);
    box.replaceChildren(...lines.map((line, i) => h(i ? "span" : "b", null, line)));
    box.hidden = false;
    const { width, height } = box.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
    const top = event.clientY + 16 + height > innerHeight ? event.clientY - 12 - height : event.clientY + 16;
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${Math.max(4, top)}px`;
  }

  return {
    $, h, setText, segments, figures, copyable, quoted, verbOf, known, number, count, percent, score, tickScore, gain, bytes, joules, duration, clock, plural,
    quantiles, gini, ticks, color, contrast, inkOn, groupColor, forgetColors, isDark, ramp, shade, rampKey, tip,
  };
})();
