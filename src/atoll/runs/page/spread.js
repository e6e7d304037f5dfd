"use strict";
// How the measure is distributed over clients, and what they gain by models of their own.

(() => {
  const { $, setText, segments, known, count, percent, score, gain, plural, quantiles, color } = Base;
  const { panel, tableOf, clientList, smallest, LISTED } = Panels;

  // --- spread over clients --------------------------------------------------------------------------------

  panel("spread", (run) => run.evaluations.length > 0 && run.judged.length > 1, (section, open) => {
    let run = null;
    let kind = null; // at first the models that clients would use
    let bars = null;
    const surface = new Surface($(".mid", section), { draw, hover });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "First", "Now", "Change", "Samples"],
      rows: worst(LISTED + 1).map((k) => [run.nameOf(k), score(run.measure, run.valueOf(k, kind, run.eachFirst)), score(run.measure, run.valueOf(k, kind)),
        gain(run.measure, run.valueOf(k, kind) - run.valueOf(k, kind, run.eachFirst)), count(run.sizeOf(k))]),
    }));

    function worst(n) {
      const values = run.eachLast[kind] || [];
      const sign = run.lowIsGood ? -1 : 1;
      return smallest(Float64Array.from(values, (v) => sign * v), n).map((i) => run.judged[i]);
    }

    function update(now) {
      run = now;
      const last = run.eachLast;
      if (!last[kind]) kind = last.personal ? "personal" : "clients";
      const host = $(".segments", section);
      const kinds = ["clients", "personal"].filter((each) => last[each]);
      host.hidden = kinds.length < 2;
      if (host.dataset.kinds !== kinds.join() + kind) {
        host.dataset.kinds = kinds.join() + kind;
        segments(host, kinds.map((each) => [each, each === "clients" ? "Global model" : "Personal models"]), kind, (value) => {
          kind = value;
          host.dataset.kinds = kinds.join() + kind;
          update(run);
        });
      }
      bin();
      surface.redraw();
      clientList($(".list", section), worst(7).map((k) => ({
        client: k, name: run.nameOf(k), bar: run.valueOf(k, kind), text: score(run.measure, run.valueOf(k, kind)), paint: "--s-worst",
      })), "No client has been judged.", open, run.measure === "accuracy" ? 1 : 0);
      const found = quantiles(last[kind], [0, 0.1, 0.5, 0.9, 1]);
      const s = (v) => score(run.measure, v);
      if (found) {
        setText($(".note", section), `Round ${last.round}, ${plural(last[kind].filter(Number.isFinite).length, "client")} judged: from ${s(found[0])} to ${s(found[4])}, ` +
          `half of them ${run.lowIsGood ? "below" : "above"} ${s(found[2])}; the first evaluation was after round ${run.eachFirst.round}.`);
        surface.describe(`Histogram. ${$(".note", section).textContent}`);
      }
      fillTable(run);
    }

    function bin() {
      const [first, last] = [run.eachFirst[kind] || [], run.eachLast[kind] || []];
      const ends = quantiles([...first, ...last], run.lowIsGood ? [0, 0.99] : [0, 1]) || [0, 1];
      let [low, high] = ends;
      let n = 20;
      if (run.measure === "accuracy") { [low, high] = [Math.floor(low * 20 + 1e-9) / 20, 1]; n = Math.max(4, Math.round((high - low) * 20)); }
      if (!(high > low)) high = low + 1;
      const fill = (values) => {
        const counts = new Array(n).fill(0);
        for (const v of values) if (known(v)) counts[Math.max(0, Math.min(n - 1, Math.floor(((v - low) / (high - low)) * n + 1e-9)))] += 1;
        return counts;
      };
      bars = { low, high, n, first: fill(first), last: fill(last), same: run.eachFirst === run.eachLast };
      bars.top = Math.max(1, ...bars.first, ...bars.last);
    }

    function box(width, height) {
      const left = 18 + count(bars.top).length * 7;
      return { left, top: 10, width: width - left - 8, height: height - 36 };
    }

    function draw(ctx, width, height) {
      if (!bars) return;
      const b = box(width, height);
      Draw.axes(ctx, b, { x: [bars.low, bars.high], y: [0, bars.top * 1.06], xText: (v) => score(run.measure, v, 0),
        xTicks: Base.ticks(bars.low, bars.high, Math.max(2, b.width / 76)),
        yTicks: Base.ticks(0, bars.top * 1.06, Math.max(2, b.height / 44), true) });
      const wide = b.width / bars.n;
      const up = (v) => (v / (bars.top * 1.06)) * b.height;
      ctx.fillStyle = color(kind === "clients" ? "--s-clients" : "--s-personal");
      bars.last.forEach((v, i) => {
        if (!v) return;
        ctx.beginPath();
        ctx.roundRect(b.left + i * wide + 1, b.top + b.height - up(v), Math.max(1, wide - 2), up(v), [2, 2, 0, 0]);
        ctx.fill();
      });
      if (!bars.same) {
        ctx.strokeStyle = color("--text");
        ctx.lineWidth = 1.25;
        ctx.beginPath();
        ctx.moveTo(b.left, b.top + b.height);
        bars.first.forEach((v, i) => {
          ctx.lineTo(b.left + i * wide, b.top + b.height - up(v));
          ctx.lineTo(b.left + (i + 1) * wide, b.top + b.height - up(v));
        });
        ctx.lineTo(b.left + b.width, b.top + b.height);
        ctx.stroke();
      }
      ctx.strokeStyle = color("--line");
      Draw.line(ctx, b.left, b.top + b.height, b.left + b.width, b.top + b.height);
    }

    function hover(x, y) {
      if (!bars) return null;
      const b = box(surface.host.clientWidth, surface.host.clientHeight);
      const i = Math.floor(((x - b.left) / b.width) * bars.n);
      if (i < 0 || i >= bars.n || y > b.top + b.height) return null;
      const step = (bars.high - bars.low) / bars.n;
      const s = (v) => score(run.measure, v, 0);
      return [`${s(bars.low + i * step)} to ${s(bars.low + (i + 1) * step)}`, `now ${plural(bars.last[i], "client")}`, `at first ${count(bars.first[i])}`];
    }
    return update;
  });

  // --- personal against global ----------------------------------------------------------------------------

  panel("personal", (run) => Boolean(run.eachLast && run.eachLast.personal && run.eachLast.clients), (section, open) => {
    let run = null;
    let sorted = new Float64Array(0);
    let who = [];
    const surface = new Surface($(".mid", section), { draw, hover, press: (x) => { const i = place(x); if (i !== null) open(who[i], who); } });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Gain", "Global model", "Personal model", "Samples"],
      rows: who.slice(0, LISTED + 1).map((k, i) => [run.nameOf(k), gain(run.measure, sorted[i]), score(run.measure, run.valueOf(k, "clients")),
        score(run.measure, run.valueOf(k, "personal")), count(run.sizeOf(k))]),
    }));

    function update(now) {
      run = now;
      const gains = run.judged.map((k) => run.gainOf(k));
      const places = smallest(gains, gains.length);
      sorted = Float64Array.from(places, (i) => gains[i]);
      who = places.map((i) => run.judged[i]);
      const losers = sorted.filter((v) => v < 0).length;
      clientList($(".list", section), who.slice(0, Math.min(7, losers)).map((k, i) => ({ client: k, name: run.nameOf(k), bar: sorted[i], text: gain(run.measure, sorted[i]), paint: "--s-worst" })),
        "None: every client does at least as well with its personal model.", open);
      const mean = sorted.reduce((a, b) => a + b, 0) / (sorted.length || 1);
      setText($(".note", section), sorted.length ? `${count(losers)} of ${count(sorted.length)} clients (${percent(losers / sorted.length, 0)}) do worse with their personal model; ` +
        `on average a client gains ${gain(run.measure, mean)}.` : "Nothing to compare yet.");
      surface.describe(`Gain of each client by its personal model, sorted. ${$(".note", section).textContent}`);
      surface.redraw();
      fillTable(run);
    }

    const box = (width, height) => ({ left: run && run.measure === "accuracy" ? 62 : 52, top: 10, width: width - (run && run.measure === "accuracy" ? 70 : 60), height: height - 34 });

    function place(x) {
      const b = box(surface.host.clientWidth, 100);
      const i = Math.floor(((x - b.left) / b.width) * sorted.length);
      return i >= 0 && i < sorted.length ? i : null;
    }

    function draw(ctx, width, height) {
      if (!sorted.length) { Draw.nothing(ctx, width, height, "No client has both values yet"); return; }
      const b = box(width, height);
      const [low, high] = [Math.min(0, sorted[0]), Math.max(0, sorted[sorted.length - 1])];
      const room = (high - low || 1) * 0.05;
      const y = [low - room, high + room];
      Draw.axes(ctx, b, { y, yText: (v) => gain(run.measure, v, high - low < 0.05 ? 1 : 0) });
      const zero = b.top + b.height - ((0 - y[0]) / (y[1] - y[0])) * b.height;
      const wide = b.width / sorted.length;
      const gap = wide > 6 ? 2 : wide > 3 ? 1 : 0;
      const [better, worse] = [color("--s-personal"), color("--s-worst")];
      const step = Math.max(1, Math.floor(1 / wide / 2)); // no more bars than half pixels
      for (let i = 0; i < sorted.length; i += step) {
        const tall = (sorted[i] / (y[1] - y[0])) * b.height;
        ctx.fillStyle = sorted[i] < 0 ? worse : better;
        ctx.fillRect(b.left + i * wide, Math.min(zero, zero - tall), Math.max(0.7, wide * step - gap), Math.max(0.5, Math.abs(tall)));
      }
      ctx.strokeStyle = color("--muted");
      Draw.line(ctx, b.left, zero, b.left + b.width, zero);
      ctx.fillStyle = color("--muted");
      ctx.textAlign = "center";
      ctx.textBaseline = "top";
      ctx.fillText(`${count(sorted.length)} clients, sorted by gain`, b.left + b.width / 2, b.top + b.height + 8);
    }

    function hover(x) {
      const i = place(x);
      if (i === null) return null;
      const k = who[i];
      return [run.nameOf(k), `personal model ${score(run.measure, run.valueOf(k, "personal"))}`, `global model ${score(run.measure, run.valueOf(k, "clients"))}`, `gain ${gain(run.measure, sorted[i])}`];
    }
    return update;
  });
})();
