"use strict";
// What a run spends of its privacy, round by round, and what it promises.

(() => {
  const { $, setText, known, number, percent, plural } = Base;
  const { panel, tableOf } = Panels;

  panel("privacy", (run) => run.blurred, (section) => {
    const epsilon = new Lines($(".epsilon", section), { text: (v) => number(v, 3), zero: true, label: "Epsilon over rounds" });
    const clipped = new Lines($(".clipped", section), { text: percent, floor: 0, ceiling: 1, reach: [0, 1], label: "Share of updates that were clipped over rounds" });
    clipped.tick = (v) => percent(v, 0);
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", "Epsilon, at most", "Delta", "Noise multiplier", "Clipped"],
      rows: run.rounds.filter((r) => r.spent).reverse().map(({ round, spent }) => [String(round), epsilonOf(spent), number(spent.delta), number(spent.noise), percent(spent.clipped)]),
    }));

    const epsilonOf = ({ epsilon: value }) => (known(value) ? number(value, 3) : "infinite");

    return (run) => {
      const { promised } = run;
      const { budget } = run;
      const { noise, level, samples_epsilon: beside, samples_delta: chance } = run.last.spent;
      const xs = run.rounds.map((r) => r.round);
      const of = (name) => run.rounds.map((r) => (r.spent && known(r.spent[name]) ? r.spent[name] : null));
      const mark = known(budget) ? { value: budget, label: `budget ${number(budget)}` } : null;
      epsilon.reach = mark ? [mark.value] : [];
      const shares = of("clipped").filter(known);
      epsilon.set(xs, [{ label: "at most, after each round", color: "--s-global", values: of("epsilon"), width: 2 }], { mark });
      clipped.host.parentNode.hidden = !shares.length; // on a network nobody may know
      if (shares.length) clipped.set(xs, [{ label: "clipped", color: "--s-worst", values: of("clipped") }]);
      $(".mark", section).hidden = promised.private;
      const spent = known(promised.epsilon) ? number(promised.epsilon, 3) : "infinite";
      Base.figures($("dl", section), [
        ["Epsilon", promised.exact ? spent : `at most ${spent}`, promised.private ? (known(budget) ? `of ${number(budget)}` : "no limit was set") : "were the noise secret"],
        ["Delta", number(promised.delta), "the chance with which that may fail"],
        ["Noise multiplier", number(noise), "deviation of the noise over the clip"],
        ...(shares.length ? [["Clipped", percent(shares.reduce((a, b) => a + b, 0) / shares.length), "of all updates"]] : []),
        ["Protects", level === "user" ? "clients" : "samples", level === "user" ? "all that one has" : "one at a time"],
        ...(known(chance) ? [["Epsilon of samples", known(beside) ? number(beside, 3) : "infinite", `at delta ${number(chance)}, were the noise of steps secret`]] : []),
      ]);
      setText($(".note", section), promised.text);
      epsilon.plot.setAttribute("aria-label", `Epsilon over ${plural(run.rounds.length, "round")}. ${promised.text}`);
      fillTable(run);
    };
  });
})();
