// What the report draws with; the rest is left out of the bundle.
export {
  axisX, axisY, barX, dot, gridX, gridY, line, lineY, link, plot, rect, ruleX, ruleY, text,
} from "@observablehq/plot";
