"use strict";
// How good the model is after each round.

(() => {
  const { $, h, setText, known, number, duration, score, tickScore } = Base;
  const { panel, axes, tableOf } = Panels;

  // --- learning -------------------------------------------------------------------------------------------

  panel("learning", (run) => !run.said || run.rounds.some((r) => r.evaluation || known(r.loss)), (section) => {
    const main = new Lines($(".main", section), { label: "Learning curves" });
    const second = $(".second", section);
    const low = new Lines($(".low", second), { label: "Loss over rounds", floor: 0 });
    const pick = $("select", section);
    const over = $(".over", section);
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", ...(run.clocked ? ["Virtual time"] : []), "Test set", "Client mean", "p10", "p90", "Worst client", ...(run.personalised ? ["Global model, client mean"] : []), "Training loss"],
      rows: run.rounds.filter((r) => r.evaluation).reverse().map((r) => {
        const c = r.evaluation.clients[run.measure] || {};
        const own = run.ownOf(r.evaluation) || {};
        const s = (v) => score(run.measure, v);
        return [String(r.round), ...(run.clocked ? [duration(r.clock.ended)] : []), s(r.evaluation.overall[run.measure]), s(own.mean), s(own.p10), s(own.p90), s(run.lowIsGood ? own.max : own.min),
          ...(run.personalised ? [s(c.mean)] : []), number(r.loss)];
      }),
    }));
    const EXPLAINED = {
      clients: "The global model after each round: on the test set, and on every client’s own test data. The band holds the middle 80 % of clients; a wide one means that the model serves some far better than others.",
      workers: "The model after each report, on the test set.",
      peer: "This peer’s own model after each round, on its own test data.",
      parties: "What the guest knows after each step: the loss, and figures on its training rows. Those on test rows are below.",
      personal: "Clients’ personal models after each round on their own test data, beside the global model there and on the test set. The band holds the middle 80 % of clients with their personal models.",
    };
    let axis = "rounds";
    let chosen = null;
    let current = null;

    function measures(run) {
      const last = run.judgedLast;
      const names = new Set([run.measure]);
      if (last) for (const part of Object.values(last.evaluation)) for (const name of Object.keys(part)) names.add(name);
      return [...names].filter((name) => name === run.measure || name !== "loss");
    }

    function update(run) {
      current = run;
      const names = measures(run);
      pick.parentNode.hidden = names.length < 2;
      if (pick.options.length !== names.length) pick.replaceChildren(...names.map((name) => h("option", null, name)));
      const measure = names.includes(chosen) ? chosen : run.measure;
      pick.value = measure;
      const all = axes(run);
      if (over.options.length !== Object.keys(all).length) {
        over.replaceChildren(...Object.entries(all).map(([key, { label }]) => h("option", { value: key }, label)));
        over.value = all[axis] ? axis : "rounds";
      }
      setText($(".explain", section), EXPLAINED[run.start.workers ? "workers" : run.start.peer ? "peer" : run.start.parties ? "parties" : run.personalised ? "personal" : "clients"]);
      draw(run, measure);
      note(run);
      fillTable(run);
    }

    function draw(run, measure) {
      const judged = run.rounds.filter((r) => r.evaluation);
      const trains = measure === "loss";
      const shown = trains ? run.rounds : judged;
      const part = (kind, field) => shown.map((r) => {
        const found = r.evaluation && r.evaluation[kind][measure];
        const value = kind === "overall" ? found : found && found[field];
        return known(value) ? value : null;
      });
      const some = (values) => values.some(known);
      const series = [];
      const own = some(part("personal", "mean")) ? "personal" : "clients"; // what clients would use
      const [p10, p90] = [part(own, "p10"), part(own, "p90")];
      if (some(p10)) series.push({ label: own === "personal" ? "p10–p90 of personal models" : "p10–p90 of clients", color: `--s-${own}`, low: p10, high: p90 });
      const add = (label, paint, values, more) => { if (some(values)) series.push({ label, color: paint, values, ...more }); };
      const falls = measure === "loss" || run.lowIsGood;
      add("worst client", "--s-worst", part(own, falls ? "max" : "min"), { dash: [2, 3], width: 1.5 });
      add(own === "personal" ? "client mean, global model" : "client mean", "--s-clients", part("clients", "mean"));
      add("client mean, personal models", "--s-personal", part("personal", "mean"), { dash: [9, 3], width: 2 });
      add("client mean, validation data", "--s-validation", part("validation", "mean"), { dash: [6, 2, 1, 2], width: 1.5 });
      add("test set", "--s-global", part("overall"), { width: 2.25 });
      if (trains) add("training", "--s-train", run.rounds.map((r) => r.loss), { dash: [5, 4], width: 1.25 });
      main.text = (v) => score(measure, v);
      main.tick = tickScore(measure);
      main.floor = 0;
      main.ceiling = measure === "accuracy" ? 1 : null;
      const [name, value] = String(run.start.target || "").split(":");
      const [kind, of] = name.split(".");
      const mark = name === measure || (["clients", "personal", "validation"].includes(kind) && (of || run.measure) === measure)
        ? { value: Number(value), label: `target ${score(measure, Number(value))}` } : null;
      const { of: where, x, text, whole = false } = axes(run)[over.value || "rounds"];
      for (const each of [main, low]) {
        if (axis !== over.value) each.zoom = null;
        Object.assign(each, { x, xText: text, whole });
      }
      axis = over.value;
      main.set(shown.map(where), series, { mark });
      second.hidden = trains;
      if (trains) return;
      const test = run.rounds.map((r) => (r.evaluation && known(r.evaluation.overall.loss) ? r.evaluation.overall.loss : null));
      const losses = [{ label: "training", color: "--s-train", values: run.rounds.map((r) => r.loss), dash: [5, 4], width: 1.25 }];
      if (some(test)) losses.push({ label: "test set", color: "--s-global", values: test });
      low.set(run.rounds.map(where), losses);
    }

    function note(run) {
      const last = run.judgedLast;
      const host = $(".note", section);
      if (!last) { setText(host, run.ending ? "Nothing was evaluated." : "Nothing has been evaluated yet."); return; }
      const s = (v) => score(run.measure, v);
      const c = run.ownOf(last.evaluation);
      const parts = [];
      if (known(last.evaluation.overall[run.measure])) parts.push(`test set ${s(last.evaluation.overall[run.measure])}`);
      if (c) {
        parts.push(`client mean ${s(c.mean)}`, `the middle 80 % of clients from ${s(c.p10)} to ${s(c.p90)}`);
        parts.push(`the worst ${s(run.lowIsGood ? c.max : c.min)}`);
      }
      if (!parts.length) parts.push(known(last.loss) ? `training loss ${number(last.loss)}` : "nothing was evaluated");
      setText(host, `After round ${last.round}: ${parts.join(", ")}.`);
      main.plot.setAttribute("aria-label", `Learning curves. ${host.textContent}`);
    }

    over.addEventListener("change", () => { if (current) update(current); });
    pick.addEventListener("change", () => { chosen = pick.value; if (current) update(current); });
    return update;
  });
})();
