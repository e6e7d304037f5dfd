"use strict";
// Which classes are taken for which.

(() => {
  const { $, h, setText, segments, known, count, plural, color, inkOn, ramp, shade, rampKey } = Base;
  const { panel, tableOf, LISTED } = Panels;
  const NUMBERED = 24; // pixels of a cell from which its share is written on it
  const WORST = 8;
  const KINDS = { own: "Clients’ test data", overall: "Test set" };

  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  panel("confusion", (run) => Boolean(run.confusion), (section) => {
    let run = null;
    let chosen = null;
    let kind = "own";
    let cells = []; // counts, row by row
    let sums = [];
    let at = null; // [label, predicted], where somebody looks
    const note = $(".note", section);
    const surface = new Surface($(".square", section), { draw, hover, press: (x, y) => look(cellAt(x, y)) });
    const { canvas } = surface;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-roledescription", "confusion matrix");
    const fillTable = tableOf(section, () => ({
      head: ["Label", "Predicted", "Samples", "Share of the label"],
      rows: pairs().slice(0, LISTED + 1).map(([t, p, n]) => [String(t), String(p), count(n), percent(n / sums[t])]),
    }));

    /** Every pair that occurs, the most frequent one of a label's samples first. */
    function pairs(wrong = false) {
      const found = [];
      cells.forEach((row, t) => row.forEach((n, p) => { if (n && !(wrong && t === p)) found.push([t, p, n]); }));
      return found.sort((a, b) => b[2] / sums[b[0]] - a[2] / sums[a[0]] || b[2] - a[2]);
    }

    function update(now) {
      if (now !== run) { chosen = null; at = null; }
      run = now;
      const kinds = Object.keys(KINDS).filter((each) => run.confusion[each]);
      kind = kinds.includes(chosen) ? chosen : kinds[0];
      cells = run.confusion[kind];
      sums = cells.map((row) => row.reduce((sum, n) => sum + n, 0));
      const host = $(".of", section);
      host.hidden = kinds.length < 2;
      const shape = kinds.join() + kind;
      if (host.dataset.shape !== shape) {
        host.dataset.shape = shape;
        segments(host, kinds.map((each) => [each, KINDS[each]]), kind, (value) => { chosen = value; at = null; update(run); });
      }
      const mistakes = pairs(true).slice(0, WORST);
      $(".list", section).replaceChildren(mistakes.length
        ? h("ol", { class: "plain" }, mistakes.map(([t, p, n]) => h("li", null, h("b", null, `${t} → ${p}`), ` ${count(n)} of ${count(sums[t])}, ${percent(n / sums[t])}`)))
        : h("p", { class: "empty small" }, "Nothing is mistaken."));
      rampKey($(".key", section), "up", "0 %", "100 %", "share of the label’s samples");
      surface.describe(`Confusion matrix of ${plural(cells.length, "class", "classes")}. ${whole()} Arrow keys move from cell to cell.`);
      setText(note, at ? lines(...at).join(", ") : whole());
      surface.redraw();
      fillTable(run);
    }

    function whole() {
      const right = cells.reduce((sum, row, t) => sum + row[t], 0);
      const all = sums.reduce((sum, n) => sum + n, 0);
      const models = kind === "own" && run.personalised ? "clients’ own models" : "the global model";
      return `After round ${run.confusion.round}, ${models} on ${kind === "own" ? "all test data of clients" : "the global test set"}: ` +
        `${count(right)} of ${plural(all, "sample")} right, ${all ? percent(right / all) : "–"}.`;
    }

    function box(width, height) {
      const side = Math.max(10, Math.min(width - 34, height - 40));
      return { left: Math.floor((width - side + 34) / 2), top: 7, side, size: side / cells.length };
    }

    function draw(ctx, width, height) {
      if (!cells.length) return;
      const n = cells.length;
      const b = box(width, height);
      const index = new Int16Array(n * n);
      cells.forEach((row, t) => row.forEach((v, p) => { index[t * n + p] = sums[t] ? shade(v / sums[t], 0, 1) : -1; }));
      Draw.image(ctx, { left: b.left, top: b.top, width: b.side, height: b.side }, n, n, index, "up");
      Draw.outline(ctx, { left: b.left, top: b.top, width: b.side, height: b.side });
      const { css } = ramp("up");
      ctx.textBaseline = "middle";
      ctx.textAlign = "center";
      if (b.size >= NUMBERED) {
        cells.forEach((row, t) => row.forEach((v, p) => {
          if (!v) return;
          ctx.fillStyle = inkOn(css[index[t * n + p]]);
          ctx.fillText(String(Math.round((100 * v) / sums[t])), b.left + (p + 0.5) * b.size, b.top + (t + 0.5) * b.size);
        }));
      }
      ctx.fillStyle = color("--muted");
      const step = Math.ceil(18 / b.size);
      for (let k = 0; k < n; k += step) {
        ctx.textAlign = "right";
        ctx.fillText(String(k), b.left - 6, b.top + (k + 0.5) * b.size);
        ctx.textAlign = "center";
        ctx.fillText(String(k), b.left + (k + 0.5) * b.size, b.top + b.side + 11);
      }
      ctx.fillText("predicted class", b.left + b.side / 2, b.top + b.side + 26);
      ctx.save();
      ctx.translate(b.left - 28, b.top + b.side / 2);
      ctx.rotate(-Math.PI / 2);
      ctx.fillText("label", 0, 0);
      ctx.restore();
      if (at) {
        ctx.strokeStyle = color("--focus");
        ctx.lineWidth = 2;
        ctx.strokeRect(b.left + at[1] * b.size, b.top + at[0] * b.size, b.size, b.size);
      }
    }

    function cellAt(x, y) {
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const [t, p] = [Math.floor((y - b.top) / b.size), Math.floor((x - b.left) / b.size)];
      return t < 0 || p < 0 || t >= cells.length || p >= cells.length ? null : [t, p];
    }

    function lines(t, p) {
      const n = cells[t][p];
      return [t === p ? `class ${t} taken for itself` : `class ${t} taken for ${p}`,
        `${count(n)} of ${plural(sums[t], "sample")}${sums[t] ? ` (${percent(n / sums[t])})` : ""}`];
    }

    function hover(x, y) {
      const cell = cellAt(x, y);
      return cell && lines(...cell);
    }

    function look(cell) {
      at = cell;
      setText(note, at ? lines(...at).join(", ") : whole());
      surface.redraw();
    }

    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step || !cells.length) return;
      event.preventDefault();
      look((at || [-step[0], -step[1]]).map((k, i) => Math.max(0, Math.min(cells.length - 1, k + step[i]))));
    });
    canvas.addEventListener("focus", () => { if (run && canvas.matches(":focus-visible") && !at) look([0, 0]); });
    canvas.addEventListener("blur", () => look(null));
    return update;
  });
})();
