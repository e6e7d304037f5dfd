"use strict";
// What a run costs: work that was cut short or dropped, the engine's time, and bytes.

(() => {
  const { $, h, setText, known, count, bytes, duration, plural, quantiles, color } = Base;
  const { panel, stacked, tableOf, clientList, LISTED } = Panels;

  // --- stragglers -----------------------------------------------------------------------------------------

  const RECENT = 60; // rounds that have columns
  const late = (r) => Boolean(r.partial || (r.dropped && r.dropped.size));

  panel("stragglers", (run) => run.rounds.some(late), (section, open) => {
    const KINDS = [["whole", "all its epochs", "--s-clients"], ["partial", "part of its epochs", "--s-personal"], ["dropped", "dropped, too slow", "--warn"]];
    let run = null;
    const drawn = stacked(section, KINDS);
    const fillTable = tableOf(section, () => ({
      head: ["Round", "Worked", "of them partly", "Dropped"],
      rows: run.rounds.slice().reverse().slice(0, LISTED + 1).map((r) => [String(r.round), count(r.cohort.size), count(r.partial), count(r.dropped ? r.dropped.size : 0)]),
    }));

    function update(now) {
      run = now;
      const often = new Map();
      const add = (k, kind) => { if (!often.has(k)) often.set(k, { partial: 0, dropped: 0 }); often.get(k)[kind] += 1; };
      let [partly, dropped, asked] = [0, 0, 0];
      const recent = run.rounds.slice(-RECENT); // older ones have no columns
      setText($("h3", section), run.rounds.length > RECENT ? `Most often late, last ${RECENT} rounds` : "Most often late");
      for (const r of recent) {
        if (r.dropped) r.dropped.each((k) => add(k, "dropped"));
        if (r.columns && r.columns.work) r.cohort.each((k, i) => { if (r.columns.work[i] < 1) add(k, "partial"); });
      }
      for (const r of run.rounds) {
        partly += r.partial;
        dropped += r.dropped ? r.dropped.size : 0;
        asked += r.cohort.size + (r.dropped ? r.dropped.size : 0);
      }
      const total = (k) => often.get(k).partial + often.get(k).dropped;
      const who = [...often.keys()].sort((a, b) => total(b) - total(a) || a - b);
      clientList($(".list", section), who.slice(0, 7).map((k) => ({ client: k, name: run.nameOf(k), bar: total(k), text: count(total(k)), paint: often.get(k).dropped ? "--warn" : "--s-personal" })), "Nobody.", (k) => open(k, who));
      const parts = [dropped ? `${plural(dropped, "reply", "replies")} dropped` : "", partly ? `${plural(partly, "reply", "replies")} of part of the planned epochs` : ""].filter(Boolean);
      setText($(".note", section), `In ${plural(run.rounds.length, "round")}, of ${count(asked)} clients that were asked: ${parts.join(", ")}.`);
      drawn(run.rounds.map((r) => ({ round: r.round, whole: r.cohort.size - r.partial, partial: r.partial, dropped: r.dropped ? r.dropped.size : 0 })), $(".note", section).textContent);
      fillTable(run);
    }
    return update;
  });

  // --- the engine's time ----------------------------------------------------------------------------------

  const timed = (r) => Boolean(r.columns && r.columns.end);

  panel("timing", (run) => run.rounds.some(timed), (section, open) => {
    let run = null;
    let shown = []; // {round, offset, seconds}
    let span = 1;
    let rows = []; // clients, the slowest first
    let everyone = [];
    const many = $("select", section);
    const surface = new Surface($(".mid", section), { draw, hover, press: (x, y) => { const found = find(x, y); if (found) open(found.client, rows); } });
    const fillTable = tableOf(section, () => ({
      head: ["Client", "Round", "Begun", "Done", "Took"],
      rows: shown.flatMap(({ round }) => round.cohort.toArray().map((k, i) => [k, i, round]))
        .sort((a, b) => b[2].columns.end[b[1]] - a[2].columns.end[a[1]]).slice(0, LISTED + 1)
        .map(([k, i, r]) => { const { start, end } = r.columns; return [run.nameOf(k), String(r.round), duration(start ? start[i] : 0), duration(end[i]), duration(end[i] - (start ? start[i] : 0))]; }),
    }));

    function update(now) {
      run = now;
      let offset = 0;
      shown = run.rounds.filter(timed).slice(-Number(many.value)).map((round) => {
        const seconds = Math.max(round.seconds || 0, ...round.columns.end.filter(known));
        const found = { round, offset, seconds };
        offset += seconds;
        return found;
      });
      span = offset || 1;
      const worst = new Map();
      for (const { round } of shown) round.cohort.each((k, i) => { const e = round.columns.end[i]; if (known(e)) worst.set(k, Math.max(worst.get(k) || 0, e)); });
      everyone = [...worst.keys()].sort((a, b) => worst.get(b) - worst.get(a));
      surface.redraw();
      remark();
      fillTable(run);
    }

    function remark() {
      const { round } = shown[shown.length - 1];
      const { start, end } = round.columns;
      const took = Array.from(end, (e, i) => e - (start && known(start[i]) ? start[i] : 0)).filter(known);
      if (!took.length) return;
      setText($(".note", section), `Round ${round.round}: the work of ${plural(took.length, "client")} took the engine ${duration(Math.max(...end.filter(known)))}, a client ${duration(quantiles(took, [0.5])[0])} in the middle and ${duration(Math.max(...took))} at most.` +
        (rows.length < everyone.length ? ` The last ${rows.length} of ${plural(everyone.length, "client")} to be done are drawn.` : ""));
      surface.describe(`When the engine did each client's work. ${$(".note", section).textContent}`);
    }

    function layout(width, height) {
      const most = Math.max(4, Math.floor((height - 30) / 6));
      rows = everyone.slice(0, most);
      const tall = Math.min(18, (height - 30) / Math.max(1, rows.length));
      const named = tall >= 12 && width > 420;
      const left = named ? Math.min(130, 14 + Math.max(...rows.map((k) => run.nameOf(k).length)) * 6.8) : 6;
      return { left, top: 4, width: width - left - 10, height: tall * rows.length, tall, named };
    }

    function draw(ctx, width, height) {
      if (!shown.length) return;
      const b = layout(width, height);
      ctx.fillStyle = color("--muted");
      ctx.textBaseline = "top";
      for (const { round, offset, seconds } of shown) {
        const x = b.left + (offset / span) * b.width;
        const wide = (seconds / span) * b.width;
        ctx.strokeStyle = color("--line");
        Draw.line(ctx, x, b.top, x, b.top + b.height + 4);
        ctx.textAlign = "left";
        if (wide > 58) ctx.fillText(wide > 130 ? `round ${round.round} · ${duration(seconds)}` : `round ${round.round}`, x + 3, b.top + b.height + 8);
      }
      if (b.named) {
        ctx.textAlign = "right";
        ctx.textBaseline = "middle";
        rows.forEach((k, i) => ctx.fillText(Draw.clip(ctx, run.nameOf(k), b.left - 12), b.left - 8, b.top + (i + 0.5) * b.tall));
      }
      const place = new Map(rows.map((k, i) => [k, i]));
      const gap = b.tall > 8 ? 3 : b.tall > 4 ? 1 : 0.5;
      ctx.fillStyle = color("--s-clients");
      for (const { round, offset } of shown) {
        const { start, end } = round.columns;
        round.cohort.each((k, i) => {
          if (!place.has(k) || !known(end[i])) return;
          const from = start && known(start[i]) ? start[i] : 0;
          const x = b.left + ((offset + from) / span) * b.width;
          ctx.fillRect(x, b.top + place.get(k) * b.tall + gap / 2, Math.max(1.5, ((end[i] - from) / span) * b.width), b.tall - gap);
        });
      }
    }

    function find(x, y) {
      if (!shown.length) return null;
      const b = layout(surface.host.clientWidth, surface.host.clientHeight);
      const client = rows[Math.floor((y - b.top) / b.tall)];
      const at = ((x - b.left) / b.width) * span;
      const found = shown.find((s) => at >= s.offset && at < s.offset + s.seconds);
      return client === undefined || !found ? null : { client, round: found.round };
    }

    function hover(x, y) {
      const found = find(x, y);
      if (!found) return null;
      const i = found.round.cohort.toArray().indexOf(found.client);
      if (i < 0) return [run.nameOf(found.client), `did not take part in round ${found.round.round}`];
      const { start, end, samples } = found.round.columns;
      const from = start && known(start[i]) ? start[i] : 0;
      return [run.nameOf(found.client), `round ${found.round.round}: its work took ${duration(end[i] - from)}`, `done ${duration(end[i])} after the round began`, ...(samples ? [plural(samples[i], "sample")] : [])];
    }

    many.addEventListener("change", () => { if (run) update(run); });
    return update;
  });

  // --- traffic --------------------------------------------------------------------------------------------

  panel("traffic", (run) => run.counted, (section) => {
    const each = new Lines($(".each", section), { text: (v) => bytes(v, 3), zero: true, label: "Bytes of each round" });
    const total = new Lines($(".total", section), { text: (v) => bytes(v, 3), zero: true, label: "Bytes in total" });
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", "Down", "Up", "Down in total", "Up in total", run.clocked ? "Machine time" : "Time"],
      rows: run.rounds.slice().reverse().map((r) => [String(r.round), bytes(r.down), bytes(r.up), bytes(r.allDown), bytes(r.allUp), duration(r.seconds)]),
    }));
    return (run) => {
      const xs = run.rounds.map((r) => r.round);
      const series = (down, up) => [
        { label: "down", color: "--s-clients", values: run.rounds.map((r) => r[down]) },
        { label: "up", color: "--s-worst", values: run.rounds.map((r) => r[up]), dash: [5, 3] },
      ];
      each.set(xs, series("down", "up"));
      total.set(xs, series("allDown", "allUp"));
      const last = run.last;
      if (last) {
        const size = run.start.parameters ? ` The model has ${count(run.start.parameters)} parameters, ${bytes(4 * run.start.parameters)} as 32-bit numbers.` : "";
        setText($(".note", section), `${bytes(last.allDown + last.allUp)} in ${plural(run.rounds.length, "round")}: ${bytes(last.allDown)} down, ${bytes(last.allUp)} up.${size}`);
      }
      fillTable(run);
    };
  });
})();
