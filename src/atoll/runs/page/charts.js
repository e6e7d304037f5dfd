"use strict";
// Charts: lines over rounds (uPlot), and a canvas for everything else.

const { Lines, Surface, Draw } = (() => {
  const { h, color, known, ticks, tip } = Base;
  const FONT = '12px Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
  const everything = new Set(); // that must be drawn anew when the theme changes

  /** Tell when the size of an element changes, once a frame. */
  function onResize(element, act) {
    let asked = 0;
    new ResizeObserver(() => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(act);
    }).observe(element);
  }

  // --- lines ----------------------------------------------------------------------------------------------

  /** Lines over rounds with a legend that follows the pointer.
   *
   * A series is {label, color, values, dash, width} or, for a band, {label, color, low, high}; `color` is the name of
   * a variable of the style sheet or a colour. One that is `of` another is not in the legend, and is shown with it.
   * Dragging across, or + and -, zooms; a double click shows all again. Where lines `carry`, the legend has the last
   * value up to the pointer, for lines that have none just there. Values in `reach` are in sight wherever the lines are. */
  class Lines {
    constructor(host, { text = (v) => Base.number(v), x = "round", xText = Base.count, carry = false, whole = true, floor = null, ceiling = null, zero = false, reach = [], label = "" } = {}) {
      Object.assign(this, { host, text, tick: text, x, xText, carry, whole, floor, ceiling, zero, reach });
      this.zoom = null; // the ends of x that are shown, null for all
      this.legend = h("ul", { class: "legend" });
      host.before(this.legend);
      this.plot = h("div", { class: "plot", tabindex: "0", role: "img", "aria-label": label });
      host.append(this.plot);
      this.u = null;
      this.shape = "";
      this.series = [];
      this.xs = [];
      this.mark = null;
      this.hidden = new Set();
      onResize(host, () => this._resize());
      this.plot.addEventListener("keydown", (event) => this._key(event));
      this.plot.addEventListener("blur", () => this._cursor(null));
      everything.add(this);
    }

    /** Show these series; `mark` is a horizontal line {value, label}. */
    set(xs, series, { mark = null, label = null } = {}) {
      this.xs = xs;
      this.series = series;
      this.mark = mark;
      if (label) this.plot.setAttribute("aria-label", label);
      const shape = JSON.stringify([this.x, series.map((s) => [s.label, s.color, s.dash, s.width, Boolean(s.low)])]);
      if (this.u && shape === this.shape) {
        this.u.setData(this._data(), !this.zoom);
        if (this.zoom) this.u.redraw(true, true);
      }
      else this._make(shape);
      this._values(null);
    }

    redraw() { if (this.series.length) this._make(this.shape); }

    _data() {
      const columns = [this.xs];
      for (const s of this.series) columns.push(...(s.low ? [s.high, s.low] : [s.values]));
      return columns;
    }

    _size() { return { width: this.host.clientWidth, height: this.host.clientHeight }; }

    _resize() {
      const size = this._size();
      if (!size.width || !this.series.length) return;
      if (!this.u) this._make(this.shape);
      else if (size.width !== this.u.width || size.height !== this.u.height) this.u.setSize(size);
    }

    _make(shape) {
      this.shape = shape;
      if (this.u) this.u.destroy();
      this.u = null;
      this._legend();
      const size = this._size();
      if (!size.width) return; // hidden; made when it is shown
      const lines = [{}];
      const bands = [];
      for (const s of this.series) {
        const paint = colorOf(s.color);
        if (s.low) {
          bands.push({ series: [lines.length, lines.length + 1], fill: translucent(paint, s.alpha || 0.16) });
          lines.push({ stroke: "transparent", width: 0, points: { show: false }, spanGaps: true });
          lines.push({ stroke: "transparent", width: 0, points: { show: false }, spanGaps: true });
        } else {
          lines.push({
            stroke: paint, width: s.width || 1.75, dash: s.dash || [], spanGaps: true,
            points: { show: (u) => u.data[0].length <= 24, size: 5, fill: paint, stroke: paint },
          });
        }
        const shown = !this.hidden.has(s.of || s.label);
        lines[lines.length - 1].show = shown;
        if (s.low) lines[lines.length - 2].show = shown;
      }
      this.u = new uPlot({
        ...size, series: lines, bands, legend: { show: false }, padding: [8, 16, 0, 0],
        cursor: { y: false, drag: { x: true, y: false }, points: { size: 7, width: 1.5 } },
        scales: {
          x: { time: false, range: (u, low, high) => (!known(low) || !known(high) ? [0, 1] : low === high ? [Math.max(0, low - 1), high + 1] : [low, high]) },
          y: { range: (u, low, high) => this._range(low, high) },
        },
        axes: [
          this._axis({ size: 26, space: 56, incrs: this.whole ? [1, 2, 5].flatMap((f) => [1, 10, 100, 1e3, 1e4, 1e5].map((p) => f * p)).sort((a, b) => a - b) : undefined,
            values: (u, at) => at.map((v) => (this.whole && v % 1 ? "" : this.xText(v))) }),
          this._axis({ space: 34, values: (u, at, axis, space, step) => at.map((v) => this.tick(v, step)),
            size: (u, values) => 14 + Math.max(20, ...(values || []).map((v) => v.length * 6.9)) }),
        ],
        hooks: {
          setCursor: [(u) => this._values(u.cursor.idx)],
          draw: [(u) => this._mark(u)],
          setScale: [(u, key) => { if (key === "x" && this.u === u) this._zoomed(u.scales.x); }],
        },
      }, this._data(), this.plot);
      if (this.zoom) this._show(...this.zoom);
    }

    /** Show a part of x, or all. */
    _show(low, high) {
      const [first, last] = [this.xs[0], this.xs[this.xs.length - 1]];
      [low, high] = [Math.max(first, low), Math.min(last, high)];
      if (this.u && high > low) this.u.setScale("x", { min: low, max: high });
    }

    /** Forget what was zoomed into, as when x has another meaning. */
    all() { this.zoom = null; this._show(-Infinity, Infinity); }

    _zoomed({ min, max }) {
      this.zoom = min > this.xs[0] || max < this.xs[this.xs.length - 1] ? [min, max] : null;
      this.wide.hidden = !this.zoom;
    }

    _axis(rest) {
      return { stroke: color("--muted"), font: FONT, gap: 6, ticks: { show: false }, grid: { stroke: color("--grid"), width: 1 }, ...rest };
    }

    _range(low, high) {
      if (!known(low) || !known(high)) return [0, 1];
      [low, high] = [Math.min(low, ...this.reach), Math.max(high, ...this.reach)];
      if (this.zero) low = Math.min(0, low);
      const room = (high - low || Math.abs(high) || 1) * 0.06;
      const bottom = this.floor !== null && low >= this.floor ? Math.max(this.floor, low - room) : low - room;
      const top = this.ceiling !== null && high <= this.ceiling ? Math.min(this.ceiling, high + room) : high + room;
      return [bottom, top > bottom ? top : bottom + 1];
    }

    _mark(u) {
      if (!this.mark || !known(this.mark.value)) return;
      const { low, high } = { low: u.scales.y.min, high: u.scales.y.max };
      if (this.mark.value < low || this.mark.value > high) return;
      const y = u.valToPos(this.mark.value, "y", true);
      const { left, width } = u.bbox;
      const scale = devicePixelRatio;
      const ctx = u.ctx;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = color("--muted");
      ctx.setLineDash([2 * scale, 3 * scale]);
      ctx.lineWidth = scale;
      ctx.beginPath();
      ctx.moveTo(left, y);
      ctx.lineTo(left + width, y);
      ctx.stroke();
      ctx.font = FONT.replace("12px", `${11 * scale}px`);
      ctx.textAlign = "left";
      const above = y - u.bbox.top > 18 * scale;
      ctx.textBaseline = above ? "bottom" : "top";
      ctx.fillText(this.mark.label, left + 4 * scale, y + (above ? -3 : 4) * scale);
      ctx.restore();
    }

    _legend() {
      this.at = h("li", { class: "at" });
      this.wide = h("li", null, h("button", { type: "button", onclick: () => this.all() }, "See all"));
      this.wide.hidden = !this.zoom;
      this.readings = this.series.map(() => h("b", null));
      this.legend.replaceChildren(...this.series.map((s, i) => {
        if (s.of) return "";
        const swatch = h("i", { class: s.low ? "swatch band" : s.dash && s.dash.length ? "swatch dashed" : "swatch" });
        swatch.style.setProperty("--paint", colorOf(s.color));
        return h("li", null, h("button", {
          type: "button", "aria-pressed": String(!this.hidden.has(s.label)), title: "Show or hide",
          onclick: (event) => this._toggle(s, event.currentTarget),
        }, swatch, h("span", null, s.label), this.readings[i]));
      }), this.wide, this.at);
    }

    _toggle(series, button) {
      if (this.hidden.has(series.label)) this.hidden.delete(series.label); else this.hidden.add(series.label);
      button.setAttribute("aria-pressed", String(!this.hidden.has(series.label)));
      this._make(this.shape);
      this._values(null);
    }

    /** Values in the legend: at a place, or the last known ones. */
    _values(place) {
      if (!this.readings || !this.xs.length) return;
      const at = known(place) ? place : null;
      const find = (values) => {
        if (!values) return null;
        if (at !== null && !this.carry) return values[at];
        for (let i = at ?? values.length - 1; i >= 0; i--) if (known(values[i])) return values[i];
        return null;
      };
      this.series.forEach((s, i) => {
        const text = s.low ? `${this.text(find(s.low))} – ${this.text(find(s.high))}` : this.text(find(s.values));
        Base.setText(this.readings[i], known(find(s.low || s.values)) ? text : "–");
      });
      const x = this.xs[at === null ? this.xs.length - 1 : at];
      Base.setText(this.at, `${this.x} ${this.xText(x)}`);
    }

    _cursor(index) {
      if (!this.u) return;
      const left = index === null ? -10 : this.u.valToPos(this.xs[index], "x");
      this.u.setCursor({ left, top: index === null ? -10 : 10 });
    }

    _key(event) {
      if (this.u && ["+", "=", "-"].includes(event.key)) {
        event.preventDefault();
        const { min, max } = this.u.scales.x;
        const middle = known(this.u.cursor.idx) ? this.xs[this.u.cursor.idx] : (min + max) / 2;
        const half = ((max - min) / 2) * (event.key === "-" ? 2 : 0.5);
        this._show(middle - half, middle + half);
        return;
      }
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (!step || !this.u || !this.xs.length) return;
      event.preventDefault();
      const from = known(this.u.cursor.idx) ? this.u.cursor.idx : this.xs.length - 1;
      this._cursor(Math.max(0, Math.min(this.xs.length - 1, from + step)));
    }
  }

  const colorOf = (name) => (name.startsWith("--") ? color(name) : name);

  function translucent(paint, alpha) {
    const n = parseInt(paint.slice(1), 16);
    return `rgba(${n >> 16}, ${(n >> 8) & 255}, ${n & 255}, ${alpha})`;
  }

  // --- a canvas -------------------------------------------------------------------------------------------

  /** A canvas as large as its host. `draw(ctx, width, height)`; `hover(x, y)` gives the lines of a tooltip, or null. */
  class Surface {
    constructor(host, { draw, hover = null, press = null, label = "" }) {
      Object.assign(this, { host, draw, hover, press });
      this.canvas = h("canvas", { role: "img", "aria-label": label });
      host.append(this.canvas);
      onResize(host, () => this.redraw());
      if (hover) {
        host.addEventListener("pointermove", (event) => tip(event, hover(...this.where(event))));
        host.addEventListener("pointerleave", () => tip(null, null));
      }
      if (press) this.canvas.addEventListener("click", (event) => press(...this.where(event)));
      everything.add(this);
    }

    where(event) {
      const box = this.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    describe(text) { this.canvas.setAttribute("aria-label", text); }

    redraw() {
      const [width, height] = [this.host.clientWidth, this.host.clientHeight];
      if (!width || !height) return;
      const scale = devicePixelRatio || 1;
      const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
      if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, { width: wide, height: high });
      const ctx = this.canvas.getContext("2d");
      ctx.setTransform(scale, 0, 0, scale, 0, 0);
      ctx.clearRect(0, 0, width, height);
      ctx.save();
      ctx.font = FONT;
      this.draw(ctx, width, height);
      ctx.restore();
    }
  }

  // --- what canvases share --------------------------------------------------------------------------------

  const Draw = {
    /** Axes of a plot in a box {left, top, width, height}: hair lines, and numbers outside. */
    axes(ctx, box, { x, y, xText = Base.count, yText = Base.count, xTicks = null, yTicks = null }) {
      ctx.save();
      ctx.font = FONT;
      ctx.fillStyle = color("--muted");
      ctx.strokeStyle = color("--grid");
      ctx.lineWidth = 1;
      if (x) {
        ctx.textAlign = "center";
        ctx.textBaseline = "top";
        for (const t of xTicks || ticks(x[0], x[1], Math.max(2, Math.min(8, box.width / 80)), true)) {
          const at = box.left + ((t - x[0]) / (x[1] - x[0] || 1)) * box.width;
          const text = xText(t);
          const half = ctx.measureText(text).width / 2;
          ctx.fillText(text, Math.max(box.left + half - 4, Math.min(at, box.left + box.width - half + 6)), box.top + box.height + 6);
        }
      }
      if (y) {
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        for (const t of yTicks || ticks(y[0], y[1], Math.max(2, Math.min(6, box.height / 36)))) {
          const at = box.top + box.height - ((t - y[0]) / (y[1] - y[0] || 1)) * box.height;
          Draw.line(ctx, box.left, at, box.left + box.width, at);
          ctx.fillText(yText(t), box.left - 8, at);
        }
      }
      ctx.restore();
    },

    line(ctx, x1, y1, x2, y2) {
      ctx.beginPath();
      ctx.moveTo(Math.round(x1) + 0.5 * (x1 === x2), Math.round(y1) + 0.5 * (y1 === y2));
      ctx.lineTo(Math.round(x2) + 0.5 * (x1 === x2), Math.round(y2) + 0.5 * (y1 === y2));
      ctx.stroke();
    },

    /** A matrix of ramp indices (255 and below; -1 is nothing), stretched over a box. */
    image(ctx, box, columns, rows, index, ramp) {
      const picture = Draw.picture(columns, rows, index, ramp);
      ctx.save();
      ctx.imageSmoothingEnabled = columns > box.width * devicePixelRatio || rows > box.height * devicePixelRatio;
      ctx.drawImage(picture, box.left, box.top, box.width, box.height);
      ctx.restore();
    },

    picture(columns, rows, index, ramp) {
      const canvas = h("canvas", { width: String(columns), height: String(rows) });
      const ctx = canvas.getContext("2d");
      const image = ctx.createImageData(columns, rows);
      const pixels = new Uint32Array(image.data.buffer);
      const { pixels: table } = Base.ramp(ramp);
      for (let i = 0; i < pixels.length; i++) pixels[i] = index[i] < 0 ? 0 : table[index[i]];
      ctx.putImageData(image, 0, 0);
      return canvas;
    },

    outline(ctx, box) {
      ctx.strokeStyle = color("--line");
      ctx.lineWidth = 1;
      ctx.strokeRect(Math.round(box.left) - 0.5, Math.round(box.top) - 0.5, Math.round(box.width) + 1, Math.round(box.height) + 1);
    },

    /** A text cut to a width. */
    clip(ctx, text, width) {
      while (text.length > 2 && ctx.measureText(text).width > width) text = `${text.slice(0, -2)}…`;
      return text;
    },

    /** Words in the middle of an empty plot. */
    nothing(ctx, width, height, text) {
      ctx.save();
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "center";
      ctx.textBaseline = "middle";
      ctx.font = FONT.replace("12px", "13px");
      ctx.fillText(text, width / 2, height / 2, width - 16);
      ctx.restore();
    },

    redrawAll() { for (const each of everything) each.redraw(); },
  };

  return { Lines, Surface, Draw };
})();
