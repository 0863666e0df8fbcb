#!/usr/bin/env python3
"""The dashboard and the alert rules of deploy/ ask for metrics, labels and label values that a gateway under traffic shows.

usage: deploy_test.py <sluice binary>"""
import http.client
import json
import os
import re
import sys
import unittest
import urllib.parse
from pathlib import Path

import yaml

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv[1]
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/sluice-gateway.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/sluice-gateway.rules.yml").read_text())
SCRAPE = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
PANEL_TYPES = {"row", "stat", "timeseries"}

# Series that `sluice gateway` alone does not show, with their labels: it is `sluice serve` that starts processes again.
ELSEWHERE = {"smg_worker_restarts_total": ("counter", {"worker"})}
# What Prometheus adds by itself.
OF_PROMETHEUS = {"up": ("gauge", set())}
OF_TARGETS = {"job", "instance"}

FUNCTIONS = {"sum", "avg", "min", "max", "count", "rate", "increase", "histogram_quantile", "abs", "vector"}
WORDS = {"by", "on", "ignoring", "without", "and", "or", "unless"}
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|=~|!~|!=|==|<=|>=|[a-zA-Z_:][a-zA-Z0-9_:]*|\d+(?:\.\d+)?[smhd]?|[-+*/^%(){}\[\],=<>]|\S')


# --- what a gateway shows ---

class Exposition:
    def __init__(self, text):
        self.types, self.labels, self.values = dict(OF_PROMETHEUS), {}, {}
        for name, (kind, labels) in {**OF_PROMETHEUS, **ELSEWHERE}.items():
            self.types[name], self.labels[name] = kind, set(labels)
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split(" ")
                self.types[name] = kind
                self.labels.setdefault(name, set())
            match = re.match(r"([a-zA-Z_:]\w*)(?:\{(.*)\})? \S+$", line)
            if match and not line.startswith("#"):
                name = self.family(match[1])
                for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""):
                    self.labels[name].add(label)
                    self.values.setdefault((name, label), set()).add(value)

    def family(self, name):
        """The family of a series, None if it is not there. The parts of a histogram have its name and a suffix."""
        for suffix in ("_bucket", "_sum", "_count"):
            if self.types.get(name.removesuffix(suffix)) == "histogram" and name.endswith(suffix):
                return name.removesuffix(suffix)
        return name if self.types.get(name) not in (None, "histogram") else None


def post(url, path, body, leave_after=None):
    """A request; with `leave_after` bytes of the answer the client is gone."""
    connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc, timeout=60)
    connection.request("POST", path, json.dumps(body) if isinstance(body, dict) else body)
    try:
        answer = connection.getresponse()
        answer.read(leave_after)
        return answer.status
    except http.client.HTTPException:
        return None
    finally:
        connection.close()


def under_traffic():
    """What a gateway shows after all that the rules ask about has happened once."""
    def prompt(text, **more):
        return {"text": text, "sampling_params": {"max_new_tokens": 4}, **more}

    with Sluice(BINARY, "bench", "worker", "--port", 0, "--time-scale", 20) as one, \
            Sluice(BINARY, "bench", "worker", "--port", 0, "--time-scale", 20) as two, \
            Sluice(BINARY, "gateway", "--worker-urls", one.url, two.url, "--port", 0, "--prometheus-port", 0,
                   "--engine-metrics", "--load-monitor-interval", 1, "--max-concurrent-requests", 1, "--queue-size", 1,
                   "--retry-initial-backoff-ms", 1, "--cb-failure-threshold", 3, "--prefix-index-bytes", 65536) as gateway:

        def page():
            return call(gateway.metrics_url() + "/metrics")[2]

        def shows(what):
            return re.search(what, page(), re.M)

        wait_until("both workers", lambda: call(gateway.url + "/readiness")[2].get("healthy_workers") == 2)
        for i in range(40):  # more than the index holds
            assert post(gateway.url, "/generate", prompt(f"{i} " + "x" * 4000)) == 200
        for _ in range(2):
            assert post(gateway.url, "/generate", prompt("a b c d e f g h " * 40, stream=True)) == 200
        assert post(gateway.url, "/generate", "{") == 400
        for worker in (one, two):
            call(worker.url + "/sim/fault", {"kind": "die", "chunks": 1, "times": 1})
        post(gateway.url, "/generate", prompt("x", stream=True))
        for worker in (one, two):
            call(worker.url + "/sim/fault", {"kind": "mute", "chunks": 1})
        post(gateway.url, "/generate", prompt("x", stream=True), leave_after=20)
        # One holds the slot, one waits, the third is one too many.
        held = [http.client.HTTPConnection(urllib.parse.urlparse(gateway.url).netloc, timeout=60) for _ in range(2)]
        for i, connection in enumerate(held):
            connection.request("POST", "/generate", json.dumps(prompt("x", stream=True)))
            wait_until("it is in", lambda: shows(("^smg_admission_inflight 1$", "^smg_admission_queue_depth 1$")[i]))
        assert post(gateway.url, "/generate", prompt("x")) == 429
        for connection in held:
            connection.close()
        wait_until("nothing is in flight", lambda: shows(r"^smg_admission_inflight 0$"))
        for worker in (one, two):
            call(worker.url + "/sim/fault", {"kind": "status", "status": 500})
        for _ in range(4):
            assert post(gateway.url, "/generate", prompt("x")) in (500, 503)
        wait_until("the loads", lambda: shows(r"^smg_engine_token_usage"))
        return Exposition(page())


# --- what the files ask for ---

class Expression:
    """The names in a PromQL expression: (series, {label: (operator, value)}), labels that it groups or matches by, and what
    it takes the rate of."""

    def __init__(self, text):
        text = re.sub(r"\$__rate_interval", "5m", text)
        self.selectors, self.grouping, self.counted = [], set(), set()
        tokens = TOKEN.findall(text)
        at = 0
        calls = []
        while at < len(tokens):
            token, following = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
            if token in ("by", "on", "ignoring", "without"):
                end = tokens.index(")", at)
                self.grouping |= set(tokens[at + 2:end]) - {","}
                at = end
            elif token == "(":
                calls.append(tokens[at - 1] if at else "")
            elif token == ")":
                calls.pop()
            elif re.match(r"[a-zA-Z_:]", token) and token not in WORDS | FUNCTIONS:
                matchers = {}
                if following == "{":
                    end = tokens.index("}", at)
                    inner = [t for t in tokens[at + 2:end] if t != ","]
                    matchers = {inner[i]: (inner[i + 1], inner[i + 2].strip('"')) for i in range(0, len(inner), 3)}
                    at = end
                self.selectors.append((token, matchers))
                if calls and calls[-1] in ("rate", "increase"):
                    self.counted.add(token)
            at += 1
        assert not calls, f"brackets do not match: {text}"


def variables_of(text):
    return set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval"}


def panels():
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard_targets():
    return [(f"panel {panel['title']!r}", target) for panel in panels() for target in panel.get("targets", [])]


def alerts():
    return [rule for group in RULES["groups"] for rule in group["rules"]]


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.shown = under_traffic()

    def check(self, where, text):
        expression = Expression(text)
        self.assertTrue(expression.selectors, f"{where}: no metric in {text}")
        labels = set(OF_TARGETS)
        for series, matchers in expression.selectors:
            family = self.shown.family(series)
            self.assertIsNotNone(family, f"{where}: the gateway shows no {series}")
            own = self.shown.labels[family] | OF_TARGETS
            labels |= own
            kind = self.shown.types[family]
            self.assertEqual(series in expression.counted, kind in ("counter", "histogram"), f"{where}: {series} is a {kind}")
            for label, (operator, value) in matchers.items():
                self.assertIn(label, own, f"{where}: {series} has no label {label}")
                if label in OF_TARGETS or "$" in value:
                    continue
                there = self.shown.values.get((family, label), set())
                fits = [v for v in there if (re.fullmatch(value, v) if operator in ("=~", "!~") else v == value)]
                self.assertTrue(fits, f"{where}: no {series} has {label}{operator}{value!r}, there are {sorted(there)}")
        self.assertLessEqual(expression.grouping, labels, f"{where}: labels that none of its metrics has")
        if "histogram_quantile" in text:
            self.assertIn("le", expression.grouping, f"{where}: quantiles need the label le")
        return expression

    def test_alerts_ask_for_what_is_there(self):
        for rule in alerts():
            self.check(rule["alert"], rule["expr"])

    def test_panels_ask_for_what_is_there(self):
        for where, target in dashboard_targets():
            expression = self.check(where, target["expr"])
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            self.assertLessEqual(legend, expression.grouping, f"{where}: the legend")

    def test_variables_ask_for_what_is_there(self):
        names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
                series, _ = Expression(match[1]).selectors[0]
                self.assertIn(match[2], self.shown.labels[self.shown.family(series)] | OF_TARGETS)
        used = set().union(*(variables_of(target["expr"]) for _, target in dashboard_targets()))
        self.assertLessEqual(used, names, "a variable that is not defined")
        self.assertLessEqual(names - {"datasource"}, used, "a variable that no panel uses")

    def test_the_check_finds_what_is_wrong(self):
        for wrong in ("sum(smg_no_such_metric)", "rate(smg_router_ttft_seconds[5m])", "sum(smg_router_requests_total)",
                      "rate(smg_worker_health[5m])", "sum by (colour) (smg_worker_health)", 'smg_worker_health{worker="x"}',
                      'smg_worker_cb_state{state="open"}', "histogram_quantile(0.9, rate(smg_router_ttft_seconds_bucket[5m]))"):
            with self.assertRaises(AssertionError, msg=wrong):
                self.check("here", wrong)


class FormTest(unittest.TestCase):
    def test_the_dashboard_has_grafanas_form(self):
        self.assertTrue(DASHBOARD["uid"] and DASHBOARD["title"])
        self.assertGreaterEqual(DASHBOARD["schemaVersion"], 36)
        self.assertIsNone(DASHBOARD.get("id"), "an id belongs to one Grafana")
        sources = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"]
        self.assertEqual([(v["name"], v["query"]) for v in sources], [("datasource", "prometheus")])
        source = {"type": "prometheus", "uid": "${datasource}"}
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                self.assertEqual(variable["datasource"], source)
        identifiers = [panel["id"] for panel in panels()]
        self.assertEqual(len(identifiers), len(set(identifiers)), "ids of panels")
        taken = set()
        for panel in panels():
            with self.subTest(panel["title"]):
                self.assertIn(panel["type"], PANEL_TYPES)
                place = panel["gridPos"]
                self.assertLessEqual(place["x"] + place["w"], 24)
                cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                         for y in range(place["y"], place["y"] + place["h"])}
                self.assertFalse(cells & taken, "it lies on another panel")
                taken |= cells
                if panel["type"] == "row":
                    continue
                self.assertEqual(panel["datasource"], source)
                self.assertTrue(panel["targets"])
                references = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(references), len(set(references)))
                for target in panel["targets"]:
                    self.assertEqual(target["datasource"], source)
                self.assertIn("unit", panel["fieldConfig"]["defaults"])

    def test_alerts_have_prometheus_form(self):
        names = [rule["alert"] for rule in alerts()]
        self.assertEqual(len(names), len(set(names)))
        for rule in alerts():
            with self.subTest(rule["alert"]):
                self.assertLessEqual(set(rule), {"alert", "expr", "for", "labels", "annotations"})
                self.assertRegex(rule["alert"], r"^Sluice[A-Z]\w+$")
                self.assertIn(rule["labels"]["severity"], ("critical", "warning", "info"))
                self.assertEqual(set(rule["annotations"]), {"summary", "description"})
                if "for" in rule:
                    self.assertRegex(rule["for"], r"^\d+[smh]$")
                # A label that the result does not have is empty in the text.
                expression = Expression(rule["expr"])
                told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
                by = re.search(r"\bby \(([^)]*)\)", rule["expr"])
                if by:
                    self.assertLessEqual(told, {label.strip() for label in by[1].split(",")} - {"le"})
                else:
                    self.assertLessEqual(told, {"worker"} | OF_TARGETS)
                self.assertTrue(expression.selectors)

    def test_prometheus_is_told_where_both_are(self):
        files = [(DEPLOY / "prometheus" / name) for name in SCRAPE["rule_files"]]
        self.assertTrue(files and all(file.is_file() for file in files))
        jobs = {job["job_name"]: job for job in SCRAPE["scrape_configs"]}
        asked = {value for rule in alerts() for _, matchers in Expression(rule["expr"]).selectors
                 for label, (_, value) in matchers.items() if label == "job"}
        self.assertLessEqual(asked, set(jobs), "the alerts look for a job that is not there")
        self.assertTrue(all(target.endswith(":29000") for target in jobs["sluice-gateway"]["static_configs"][0]["targets"]))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
