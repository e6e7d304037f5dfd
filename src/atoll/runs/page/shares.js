"use strict";
// Who trains when, and on which data.

(() => {
  const { $, figures, segments, known, number, count, percent, plural, quantiles, color, shade } = Base;
  const { panel, tableOf, LISTED } = Panels;

  // --- participation --------------------------------------------------------------------------------------

  const ROWS = 240; // of the picture; more clients share a row
  const COLUMNS = 1024; // more rounds share a column

  /** How often, counted once for all: min, median, max, Gini, Jain's index and how many never took part. */
  function fairness(counts) {
    const most = counts.reduce((a, b) => Math.max(a, b), 0);
    const tally = new Float64Array(most + 1);
    for (const c of counts) tally[c] += 1;
    let [before, weighted, total, squares, median, least] = [0, 0, 0, 0, null, null];
    for (let c = 0; c <= most; c++) {
      if (!tally[c]) continue;
      if (least === null) least = c;
      // ranks before + 1 ... before + tally[c] of the sorted list
      weighted += c * tally[c] * (2 * before + tally[c] - counts.length);
      before += tally[c];
      total += c * tally[c];
      squares += c * c * tally[c];
      if (median === null && before * 2 >= counts.length) median = c;
    }
    return { least, median, most, never: tally[0], gini: total ? weighted / (counts.length * total) : 0, jain: squares ? (total * total) / (counts.length * squares) : 1 };
  }

  panel("participation", (run) => run.clients > 1, (section) => {
    let run = null;
    let rows = 0;
    let per = 1; // rounds a column
    let done = 0; // rounds that are in the picture
    let cells = null;
    let inRow = null;
    const surface = new Surface($(".mid", section), { draw, hover });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Rounds it took part in", "Share", "Last"],
      rows: Array.from(run.count.subarray(0, 100000), (c, k) => [c, k]).sort((a, b) => b[0] - a[0]).slice(0, LISTED + 1)
        .map(([c, k]) => [run.nameOf(k), count(c), percent(c / Math.max(1, run.rounds.length)), run.lastRound[k] ? String(run.lastRound[k]) : "–"]),
    }));

    function reset(now) {
      run = now;
      rows = Math.min(ROWS, run.clients);
      per = 1;
      while (run.rounds.length > COLUMNS * per) per *= 2;
      done = 0;
      cells = new Uint32Array(rows * COLUMNS);
      inRow = new Float64Array(rows);
      for (let k = 0; k < run.clients; k++) inRow[rowOf(k)] += 1;
    }

    /** The first round with a client, and the first without it. */
    const stay = (client) => {
      const { joins = {}, leaves = {} } = run.partition || {};
      if (run.state[client] === NEWCOMER) return [Infinity, Infinity];
      return [joins[client] || 1, leaves[client] || Infinity];
    };
    const moving = () => Object.keys({ ...(run.partition || {}).joins, ...(run.partition || {}).leaves });

    const newcomers = () => (run.partition || {}).newcomers || [];

    function shadeAbsent(ctx, b) {
      if (rows < run.clients) return; // several clients share a row
      const columns = Math.ceil(run.rounds.length / per);
      const x = (round) => b.left + (Math.min(columns, Math.floor((round - 1) / per)) / columns) * b.width;
      ctx.save();
      ctx.fillStyle = color("--muted");
      ctx.globalAlpha = 0.3;
      for (const client of [...moving(), ...newcomers()]) {
        const [from, to] = stay(client);
        const [top, height] = [b.top + (client / run.clients) * b.height, b.height / run.clients];
        ctx.fillRect(b.left, top, x(from) - b.left, height);
        if (to <= run.rounds.length) ctx.fillRect(x(to), top, b.left + b.width - x(to), height);
      }
      ctx.restore();
    }

    const rowOf = (client) => Math.floor((client * rows) / run.clients);

    function update(now) {
      if (now !== run || now.rounds.length < done || now.rounds.length > COLUMNS * per) reset(now);
      for (; done < run.rounds.length; done++) {
        const column = Math.floor(done / per);
        run.rounds[done].cohort.each((client) => { if (client < run.clients) cells[rowOf(client) * COLUMNS + column] += 1; });
      }
      surface.redraw();
      const f = fairness(newcomers().length ? run.count.filter((_, k) => run.state[k] !== NEWCOMER) : run.count);
      figures($("dl", section), [
        ["Rounds a client", `${f.least} – ${f.most}`, `median ${f.median}`],
        ["Never took part", count(f.never), `of ${plural(run.clients - newcomers().length, "client")}`],
        ["Jain’s index", f.jain.toFixed(2), "1 is even"],
        ["Gini", f.gini.toFixed(2), "0 is even"],
        ...(moving().length ? [["Come or leave", count(moving().length), "grey: not there"]] : []),
        ...(newcomers().length ? [["Newcomers", count(newcomers().length), "grey: judged apart"]] : []),
      ]);
      surface.describe(`Participation of ${run.clients} clients in ${run.rounds.length} rounds: between ${f.least} and ${f.most} rounds, Jain’s index ${f.jain.toFixed(2)}, Gini ${f.gini.toFixed(2)}.`);
      fillTable(run);
    }

    function box(width, height) {
      const left = 10 + String(count(run.clients)).length * 8;
      const side = Math.min(80, width / 6); // for the bars
      return { left, top: 6, width: width - left - 16 - side, height: height - 34, side };
    }

    /** Beside the picture: in how many rounds each client took part, or each of several in a row on average. */
    function bars(ctx, b) {
      const totals = inRow.map(() => 0);
      run.count.forEach((n, k) => { totals[rowOf(k)] += n; });
      const often = totals.map((n, r) => n / (inRow[r] || 1));
      const most = often.reduce((a, n) => Math.max(a, n), 1);
      const [x, tall] = [b.left + b.width + 8, b.height / rows];
      ctx.fillStyle = color("--s-clients");
      often.forEach((n, r) => ctx.fillRect(x, b.top + r * tall + (tall > 4 ? 1 : 0), (n / most) * b.side, Math.max(0.7, tall - (tall > 4 ? 2 : 0))));
      ctx.fillStyle = color("--muted");
      ctx.textBaseline = "top";
      ctx.textAlign = "left";
      ctx.fillText("0", x, b.top + b.height + 6);
      ctx.textAlign = "right";
      ctx.fillText(count(most), x + b.side, b.top + b.height + 6);
    }

    function draw(ctx, width, height) {
      if (!run || !run.rounds.length) { Draw.nothing(ctx, width, height, run && run.ending ? "No round was played to its end" : "No round is over yet"); return; }
      const b = box(width, height);
      const columns = Math.ceil(run.rounds.length / per);
      const index = new Int16Array(rows * columns);
      let most = 0;
      const share = (r, c) => cells[r * COLUMNS + c] / (inRow[r] * per);
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) most = Math.max(most, share(r, c));
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) index[r * columns + c] = shade(share(r, c), 0, (most || 1) * 1.5);
      Draw.image(ctx, b, columns, rows, index, "up");
      shadeAbsent(ctx, b);
      Draw.outline(ctx, b);
      Draw.axes(ctx, b, { x: [0.5, run.rounds.length + 0.5], xTicks: Base.ticks(1, run.rounds.length, Math.max(2, b.width / 90), true).map((t) => Math.max(1, t)) });
      ctx.save();
      bars(ctx, b);
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      for (const t of Base.ticks(0, run.clients - 1, Math.max(2, b.height / 44), true)) {
        ctx.fillText(count(t), b.left - 7, b.top + ((t + 0.5) / run.clients) * b.height);
      }
      ctx.restore();
    }

    function hover(x, y) {
      if (!run || !run.rounds.length) return null;
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const row = Math.floor(((y - b.top) / b.height) * rows);
      const columns = Math.ceil(run.rounds.length / per);
      const column = Math.floor(((x - b.left) / b.width) * columns);
      if (row < 0 || row >= rows || column < 0) return null;
      const [from, to] = [Math.ceil((row * run.clients) / rows), Math.ceil(((row + 1) * run.clients) / rows) - 1];
      if (column >= columns) return from === to ? [run.nameOf(from), `took part in ${plural(run.count[from], "round")}`] : null;
      const [first, last] = [column * per + 1, Math.min(run.rounds.length, (column + 1) * per)];
      const when = first === last ? `round ${first}` : `rounds ${first} to ${last}`;
      const n = cells[row * COLUMNS + column];
      if (from === to) return [run.nameOf(from), when, first === last ? (n ? "took part" : first < stay(from)[0] || first >= stay(from)[1] ? "not there" : "did not take part") : `took part in ${n}`, `in all: ${plural(run.count[from], "round")}`];
      return [`clients ${count(from)} to ${count(to)}`, when, plural(n, "participation")];
    }
    return update;
  });

  // --- data of the clients --------------------------------------------------------------------------------

  panel("partition", (run) => Boolean(run.partition && run.partition.report && run.partition.report.sizes), (section) => {
    let run = null;
    let report = null;
    let order = "position";
    let places = [];
    const surface = new Surface($(".mid", section), { draw, hover });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Samples", ...(report.emd ? ["EMD", "Effective classes"] : []), ...(report.counts && report.counts[0].length <= 20 ? report.counts[0].map((_, c) => `Class ${c}`) : [])],
      rows: places.map((i) => [report.names[i], count(report.sizes[i]), ...(report.emd ? [number(report.emd[i], 3), number((report.effective || [])[i], 3)] : []),
        ...(report.counts && report.counts[0].length <= 20 ? report.counts[i].map(count) : [])]),
    }));

    function update(now) {
      if (run === now && report === now.partition.report) return;
      run = now;
      report = run.partition.report;
      const host = $(".order", section);
      const options = [["position", "Position"], ["size", "Size"], ...(report.counts ? [["class", "Main class"]] : [])];
      segments(host, options, order, (value) => { order = value; arrange(); surface.redraw(); fillTable(run); });
      arrange();
      surface.redraw();
      const sizes = quantiles(report.sizes, [0, 0.5, 1]);
      const some = report.sizes.length < (report.population || 0) ? `${count(report.sizes.length)} looked at` : "";
      const pairs = [["Clients", count(report.population || report.sizes.length), some],
        ["Samples", count(report.sizes.reduce((a, b) => a + b, 0)), `${count(sizes[0])} – ${count(sizes[2])} a client`],
        ["Gini of sizes", number(report.gini, 2), "0 is even"]];
      if (report.emd) {
        const emd = quantiles(report.emd, [0.5, 1]);
        pairs.push(["EMD", emd[0].toFixed(2), `median; up to ${emd[1].toFixed(2)}`]);
      }
      if (report.effective && report.counts) pairs.push(["Effective classes", quantiles(report.effective, [0.5])[0].toFixed(1), `of ${report.counts[0].length}, median`]);
      figures($("dl", section), pairs);
      surface.describe(`Data of ${report.names.length} clients. ${pairs.map((p) => p.join(" ")).join(", ")}.`);
      fillTable(run);
    }

    function arrange() {
      places = report.sizes.map((_, i) => i);
      const top = (i) => report.counts[i].reduce((best, v, c, row) => (v > row[best] ? c : best), 0);
      if (order === "size") places.sort((a, b) => report.sizes[b] - report.sizes[a]);
      if (order === "class") {
        const main = report.sizes.map((_, i) => top(i));
        const part = (i) => report.counts[i][main[i]] / (report.sizes[i] || 1);
        places.sort((a, b) => main[a] - main[b] || part(b) - part(a));
      }
    }

    function boxes(width, height) {
      const left = 42;
      const wide = width - left - 8;
      if (!report.counts) return { sizes: { left, top: 8, width: wide, height: height - 20 } };
      const dots = report.emd ? Math.max(30, height * 0.16) : 0;
      const bars = Math.max(36, height * 0.22);
      const map = height - bars - dots - 28;
      return {
        sizes: { left, top: 6, width: wide, height: bars - 6 },
        map: { left, top: bars + 6, width: wide, height: map },
        emd: dots ? { left, top: bars + map + 16, width: wide, height: dots } : null,
      };
    }

    function draw(ctx, width, height) {
      if (!report) return;
      const b = boxes(width, height);
      const n = places.length;
      const wide = b.sizes.width / n;
      const gap = wide > 8 ? 2 : wide > 3 ? 1 : 0;
      const most = Math.max(...report.sizes, 1);
      Draw.axes(ctx, b.sizes, { y: [0, most], yTicks: [0, most] });
      ctx.fillStyle = color("--s-clients");
      places.forEach((i, p) => {
        const tall = (report.sizes[i] / most) * b.sizes.height;
        ctx.fillRect(b.sizes.left + p * wide, b.sizes.top + b.sizes.height - tall, Math.max(0.7, wide - gap), tall);
      });
      if (!b.map) return;
      const classes = report.counts[0].length;
      const index = new Int16Array(n * classes);
      places.forEach((i, p) => {
        const total = report.counts[i].reduce((a, v) => a + v, 0) || 1;
        for (let c = 0; c < classes; c++) index[c * n + p] = shade(report.counts[i][c] / total, 0, 1);
      });
      Draw.image(ctx, b.map, n, classes, index, "up");
      Draw.outline(ctx, b.map);
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      const each = Math.max(1, Math.ceil(classes / (b.map.height / 15)));
      for (let c = 0; c < classes; c += each) ctx.fillText(String(c), b.map.left - 8, b.map.top + ((c + 0.5) / classes) * b.map.height);
      if (!b.emd) return;
      Draw.axes(ctx, b.emd, { y: [0, 2], yTicks: [0, 1, 2] });
      ctx.fillStyle = color("--s-worst");
      places.forEach((i, p) => {
        const y = b.emd.top + b.emd.height - (report.emd[i] / 2) * b.emd.height;
        ctx.beginPath();
        ctx.arc(b.emd.left + (p + 0.5) * wide, y, Math.max(1.2, Math.min(3, wide / 3)), 0, 7);
        ctx.fill();
      });
    }

    function hover(x, y) {
      if (!report) return null;
      const b = boxes(surface.host.clientWidth, surface.host.clientHeight);
      const p = Math.floor(((x - b.sizes.left) / b.sizes.width) * places.length);
      if (p < 0 || p >= places.length) return null;
      const i = places[p];
      const lines = [String(report.names[i]), plural(report.sizes[i], "sample")];
      if (b.map && y >= b.map.top && y < b.map.top + b.map.height) {
        const c = Math.floor(((y - b.map.top) / b.map.height) * report.counts[i].length);
        const total = report.counts[i].reduce((a, v) => a + v, 0) || 1;
        lines.push(`class ${c}: ${count(report.counts[i][c])}, ${percent(report.counts[i][c] / total, 0)}`);
      }
      if (report.emd && known(report.emd[i])) lines.push(`EMD ${report.emd[i].toFixed(2)}`);
      return lines;
    }
    return update;
  });
})();
