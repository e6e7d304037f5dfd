"use strict";
// What clients send: how far and where their updates point, and which clients' updates are alike.

(() => {
  const { $, setText, segments, known, number, plural, color, shade, rampKey } = Base;
  const { panel, tableOf, LISTED } = Panels;

  // --- drift ----------------------------------------------------------------------------------------------

  const withUpdates = (run) => run.rounds.some((r) => r.quantiles.norm || r.quantiles.cosine);

  panel("drift", withUpdates, (section, open) => {
    let run = null;
    let round = null; // the last one that has columns
    const norm = new Lines($(".norm", section), { text: (v) => number(v, 3), floor: 0, label: "Norm of updates over rounds" });
    const cosine = new Lines($(".cosine", section), { text: (v) => number(v, 3), ceiling: 1, label: "Cosine to the mean update over rounds" });
    const surface = new Surface($(".scatter", section), { draw, hover, press: (x, y) => { const i = nearest(x, y); if (i !== null) open(clients()[i], clients()); } });
    const fillTable = tableOf(section, () => ({
      head: ["Round", "Norm p10", "median", "p90", "Cosine p10", "median", "p90"],
      rows: run.rounds.filter((r) => r.quantiles.norm || r.quantiles.cosine).reverse().slice(0, LISTED + 1).map((r) =>
        [String(r.round), ...[...(r.quantiles.norm || [null, null, null]), ...(r.quantiles.cosine || [null, null, null])].map((v) => number(v, 3))]),
    }));

    const clients = () => (round ? round.cohort.toArray() : []);

    function lines(chart, name, paint) {
      const found = run.rounds.map((r) => r.quantiles[name] || [null, null, null]);
      chart.set(run.rounds.map((r) => r.round), [
        { label: "p10–p90", color: paint, low: found.map((q) => q[0]), high: found.map((q) => q[2]) },
        { label: "median", color: paint, values: found.map((q) => q[1]) },
      ]);
    }

    function update(now) {
      run = now;
      lines(norm, "norm", "--s-global");
      lines(cosine, "cosine", "--s-clients");
      round = [...run.rounds].reverse().find((r) => r.columns && r.columns.norm && r.columns.cosine) || null;
      setText($(".when", section), round ? `Clients of round ${round.round}: cosine over norm` : "Clients of the last round");
      surface.redraw();
      const last = [...run.rounds].reverse().find((r) => r.quantiles.cosine);
      if (last) {
        const c = last.quantiles.cosine[1];
        const word = c > 0.6 ? "clients largely agree" : c > 0.25 ? "clients agree in part" : "clients pull apart";
        setText($(".note", section), `Round ${last.round}: median cosine ${number(c, 2)}; ${word}.` +
          (last.quantiles.norm ? ` The median update has norm ${number(last.quantiles.norm[1], 3)}.` : ""));
      }
      surface.describe(`Norm against cosine of each client's update. ${$(".note", section).textContent}`);
      fillTable(run);
    }

    const box = (width, height) => ({ left: 44, top: 10, width: width - 54, height: height - 36 });

    function ends() {
      const xs = round.columns.norm.filter(known);
      const ys = round.columns.cosine.filter(known);
      const high = Math.max(...xs, 0) * 1.06 || 1;
      const low = Math.min(...ys, 0);
      return { x: [0, high], y: [low < 0 ? Math.max(-1, low - 0.08) : 0, 1] };
    }

    function points(b) {
      const { x, y } = ends();
      const { norm: xs, cosine: ys } = round.columns;
      return Array.from(xs, (v, i) => [b.left + ((v - x[0]) / (x[1] - x[0])) * b.width, b.top + b.height - ((ys[i] - y[0]) / (y[1] - y[0])) * b.height]);
    }

    function draw(ctx, width, height) {
      if (!round) { Draw.nothing(ctx, width, height, "Not known for this round"); return; }
      const b = box(width, height);
      const e = ends();
      Draw.axes(ctx, b, { ...e, xText: (v) => number(v, 3), yText: (v) => number(v, 2), xTicks: Base.ticks(e.x[0], e.x[1], Math.max(2, b.width / 70)) });
      const refused = new Set(round.refused);
      const who = clients();
      const found = points(b);
      const small = found.length > 400 ? 2 : 3.5;
      ctx.globalAlpha = found.length > 400 ? 0.5 : 0.8;
      found.forEach(([px, py], i) => {
        if (!known(px) || !known(py)) return;
        ctx.fillStyle = color(refused.has(who[i]) ? "--bad" : "--s-clients");
        ctx.beginPath();
        ctx.arc(px, py, small, 0, 7);
        ctx.fill();
      });
      ctx.globalAlpha = 1;
    }

    function nearest(x, y) {
      if (!round) return null;
      let [best, at] = [144, null];
      points(box(surface.host.clientWidth, surface.host.clientHeight)).forEach(([px, py], i) => {
        const d = (px - x) ** 2 + (py - y) ** 2;
        if (d < best) [best, at] = [d, i];
      });
      return at;
    }

    function hover(x, y) {
      const i = nearest(x, y);
      if (i === null) return null;
      const { norm: xs, cosine: ys, loss, samples } = round.columns;
      const found = [run.nameOf(clients()[i]), `norm ${number(xs[i], 3)}`, `cosine ${number(ys[i], 3)}`];
      if (loss) found.push(`training loss ${number(loss[i], 3)}`);
      if (samples) found.push(plural(samples[i], "sample"));
      return found;
    }
    return update;
  });

  // --- affinity -------------------------------------------------------------------------------------------

  /** An order in which alike neighbours stand together: average linkage, each joint turned so that its ends meet best. */
  function clustered(matrix) {
    const n = matrix.length;
    const like = matrix.map((row) => Float64Array.from(row, (v) => (known(v) ? v : 0)));
    const leaves = matrix.map((_, i) => [i]);
    const alive = new Set(leaves.keys());
    const chain = [];
    while (alive.size > 1) {
      if (!chain.length) chain.push(alive.values().next().value);
      const a = chain[chain.length - 1];
      const before = chain[chain.length - 2];
      let b = before === undefined ? -1 : before;
      for (const k of alive) if (k !== a && (b < 0 || like[a][k] > like[b][a])) b = k;
      if (b !== before) { chain.push(b); continue; }
      chain.length -= 2;
      const [p, q] = [leaves[a].length, leaves[b].length];
      for (const k of alive) like[a][k] = like[k][a] = (p * like[a][k] + q * like[b][k]) / (p + q);
      leaves[a] = joined(leaves[a], leaves[b], matrix);
      alive.delete(b);
    }
    return n ? leaves[alive.values().next().value] : [];
  }

  function joined(a, b, matrix) {
    const turns = [[a, b], [a, [...b].reverse()], [[...a].reverse(), b], [[...a].reverse(), [...b].reverse()]];
    const fit = ([x, y]) => matrix[x[x.length - 1]][y[0]] || 0;
    const [x, y] = turns.reduce((best, turn) => (fit(turn) > fit(best) ? turn : best));
    return [...x, ...y];
  }

  panel("affinity", (run) => Boolean(run.affinity), (section) => {
    let run = null;
    let event = null;
    let order = "clustered";
    let places = [];
    let by = [];
    const surface = new Surface($(".square", section), { draw, hover });
    const fillTable = tableOf(section, () => ({ head: ["Pair", "With", "Affinity"], rows: pairs().slice(0, LISTED + 1).map(([i, j, v]) => [name(i), name(j), v.toFixed(2)]) }));

    const name = (i) => run.nameOf(event.clients[i]);
    const brief = (i) => run.briefOf(event.clients[i]);

    function pairs() {
      const found = [];
      event.matrix.forEach((row, i) => row.forEach((v, j) => { if (j > i && known(v)) found.push([i, j, v]); }));
      return found.sort((a, b) => b[2] - a[2]);
    }

    function update(now) {
      run = now;
      if (event !== run.affinity) {
        event = run.affinity;
        by = clustered(event.matrix);
        const found = pairs();
        const [best, least] = [found[0], found[found.length - 1]];
        if (best) {
          setText($(".note", section), `${event.of ? `${event.of[0].toUpperCase()}${event.of.slice(1)}` : "Affinity"} after round ${event.round}, ${plural(event.clients.length, "client")}. ` +
            `Most alike: ${brief(best[0])} and ${brief(best[1])} (${best[2].toFixed(2)}); least: ${brief(least[0])} and ${brief(least[1])} (${least[2].toFixed(2)}).`);
        }
        surface.describe(`Affinity matrix. ${$(".note", section).textContent}`);
        segments($(".order", section), [["clustered", "Clustered"], ["position", "Position"]], order, (value) => { order = value; arrange(); });
        fillTable(run);
        arrange();
      }
      rampKey($(".key", section), "both", "−1", "1", "affinity");
    }

    function arrange() {
      places = order === "clustered" ? by : event.clients.map((_, i) => i);
      surface.redraw();
    }

    function box(width, height) {
      const named = places.length <= 24 && width > 260 ? Math.min(96, 12 + Math.max(...places.map((i) => name(i).length)) * 6.6) : 0;
      const side = Math.max(10, Math.min(width - named - 2, height - 2));
      return { left: Math.max(named, Math.floor((width - side) / 2)), top: 1, width: side, height: side, named };
    }

    function draw(ctx, width, height) {
      if (!event) return;
      const b = box(width, height);
      const n = places.length;
      const index = new Int16Array(n * n);
      places.forEach((i, r) => places.forEach((j, c) => { const v = event.matrix[i][j]; index[r * n + c] = known(v) ? shade(v, -1, 1) : -1; }));
      Draw.image(ctx, b, n, n, index, "both");
      Draw.outline(ctx, b);
      if (!b.named) return;
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "right";
      ctx.textBaseline = "middle";
      places.forEach((i, r) => ctx.fillText(Draw.clip(ctx, name(i), b.named - 12), b.left - 8, b.top + ((r + 0.5) / n) * b.height));
    }

    function hover(x, y) {
      if (!event) return null;
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const c = Math.floor(((x - b.left) / b.width) * places.length);
      const r = Math.floor(((y - b.top) / b.height) * places.length);
      if (c < 0 || r < 0 || c >= places.length || r >= places.length) return null;
      const v = event.matrix[places[r]][places[c]];
      return [`${name(places[r])} · ${name(places[c])}`, `${event.of || "affinity"} ${known(v) ? v.toFixed(3) : "unknown"}`];
    }
    return update;
  });
})();
