//! Dashboards as tables, and Grafana's JSON for them.
//!
//! In: [`Board`], a list of rows of panels, each with its queries. Out: a document that Grafana
//! imports, asking for the data source. Pure. What all panels have alike is written here once, so
//! that a panel is added by adding a line to a table.
//!
//! Invariant: every panel has a description, a unit and a query; identifiers follow from the order.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;
/// Which columns of a table come first; the others follow.
const COLUMN_ORDER: [&str; 8] = [
    "instance", "release", "era", "lock", "op", "intent", "kind", "mode",
];
/// Of a column of sentences.
const SENTENCE_WIDTH: u32 = 1000;
/// The oldest Grafana whose panels and format these are.
const SCHEMA: u32 = 39;

/// A dashboard.
pub(super) struct Board {
    /// The name of its file, and its identity in Grafana.
    pub(super) uid: &'static str,
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) variables: Vec<Variable>,
    pub(super) rows: Vec<Row>,
}

/// Something that the reader chooses.
pub(super) struct Variable {
    pub(super) name: &'static str,
    pub(super) label: &'static str,
    /// A query of label values.
    pub(super) query: String,
    /// Whether several can be chosen, and all of them at first.
    pub(super) several: bool,
    /// Whether all of them are those that other variables leave, instead of any.
    pub(super) narrowed: bool,
}

/// A title and what stands below it.
pub(super) struct Row {
    pub(super) title: &'static str,
    pub(super) panels: Vec<Panel>,
}

/// How a panel shows its numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One number, or one for each series.
    Stat,
    /// Lines over time.
    Lines,
    /// Lines on top of each other.
    Stack,
    /// Buckets over time.
    Heatmap,
    /// The newest numbers, the queries side by side.
    Table,
}

pub(super) struct Panel {
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) shape: Shape,
    pub(super) unit: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) queries: Vec<Query>,
    /// From which numbers on it is worth a look, and alarming.
    pub(super) limits: Option<[f64; 2]>,
    /// What is shown where there are no numbers.
    pub(super) absent: &'static str,
    /// Where a table's queries differ in unit: column and unit.
    pub(super) units: Vec<(&'static str, &'static str)>,
}

pub(super) struct Query {
    pub(super) expr: String,
    /// With labels in double braces; for a table, the name of the column.
    pub(super) legend: &'static str,
}

impl Board {
    /// The document that Grafana imports.
    pub(super) fn document(&self) -> Value {
        let mut panels = Vec::new();
        let mut y = 0;
        for row in &self.rows {
            panels.push(json!({
                "id": panels.len() + 1, "type": "row", "title": row.title, "collapsed": false,
                "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 }, "panels": [],
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    (x, y, height) = (0, y + height, 0);
                }
                let place = json!({ "x": x, "y": y, "w": panel.width, "h": panel.height });
                panels.push(panel.document(panels.len() + 1, place));
                x += panel.width;
                height = height.max(panel.height);
            }
            y += height;
        }
        let variables = self.variables.iter().map(Variable::document);
        json!({
            "__inputs": [{
                "name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource",
                "pluginId": "prometheus", "pluginName": "Prometheus",
                "description": "Where kcore-trace is scraped",
            }],
            "__requires": [
                { "type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.4.0" },
                { "type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0" },
            ],
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["kcore-trace", "kernel", "locks"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "links": [{
                "type": "dashboards", "title": "kcore-trace", "tags": ["kcore-trace"],
                "asDropdown": false, "includeVars": true, "keepTime": true,
            }],
            "templating": { "list": variables.collect::<Vec<_>>() },
            "panels": panels,
        })
    }
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${DS_PROMETHEUS}" })
}

impl Variable {
    fn document(&self) -> Value {
        let mut document = json!({
            "name": self.name, "label": self.label, "type": "query", "datasource": source(),
            "query": { "query": self.query, "refId": self.name }, "definition": self.query,
            "refresh": 2, "sort": 1, "multi": self.several, "includeAll": self.several,
        });
        if self.several {
            if !self.narrowed {
                document["allValue"] = ".*".into();
            }
            document["current"] = json!({ "text": ["All"], "value": ["$__all"] });
        }
        document
    }
}

impl Panel {
    fn document(&self, id: usize, place: Value) -> Value {
        let queries = self.queries.iter().zip('A'..);
        let targets = queries.map(|(query, letter)| self.target(query, letter));
        let mut document = json!({
            "id": id, "title": self.title, "description": self.description,
            "type": self.shape.plugin(), "datasource": source(), "gridPos": place,
            "targets": targets.collect::<Vec<_>>(),
            "fieldConfig": { "defaults": self.field_defaults(), "overrides": self.overrides() },
            "options": self.options(),
        });
        if self.shape == Shape::Table {
            document["transformations"] = json!([
                { "id": "merge", "options": {} },
                { "id": "organize", "options": {
                    "excludeByName": { "Time": true },
                    "indexByName": COLUMN_ORDER.iter().zip(0..).collect::<BTreeMap<_, _>>(),
                } },
            ]);
        }
        document
    }

    fn target(&self, query: &Query, letter: char) -> Value {
        let now = matches!(self.shape, Shape::Table | Shape::Stat);
        let format = match self.shape {
            Shape::Table => "table",
            Shape::Heatmap => "heatmap",
            Shape::Stat | Shape::Lines | Shape::Stack => "time_series",
        };
        json!({
            "refId": letter.to_string(), "datasource": source(), "expr": query.expr,
            "legendFormat": query.legend, "format": format, "instant": now, "range": !now,
        })
    }

    fn field_defaults(&self) -> Value {
        let steps = match self.limits {
            Some([look, alarm]) => json!([
                { "color": "green", "value": null },
                { "color": "orange", "value": look },
                { "color": "red", "value": alarm },
            ]),
            None => json!([{ "color": "blue", "value": null }]),
        };
        let mut defaults = json!({
            "unit": self.unit, "min": 0, "noValue": self.absent,
            "thresholds": { "mode": "absolute", "steps": steps },
        });
        if let Shape::Lines | Shape::Stack = self.shape {
            let (fill, mode) = match self.shape {
                Shape::Stack => (30, "normal"),
                _ => (5, "none"),
            };
            // Where there is nothing, an axis up to 10,000 % says nothing.
            let least = match self.unit {
                "percentunit" => 0.01,
                "s" => 0.001,
                _ => 1.0,
            };
            defaults["custom"] = json!({
                "axisSoftMax": least, "fillOpacity": fill, "lineWidth": 1, "showPoints": "never", "spanNulls": false,
                "stacking": { "group": "A", "mode": mode },
            });
        }
        defaults
    }

    /// Names and units of a table's columns.
    fn overrides(&self) -> Value {
        if self.shape != Shape::Table {
            return json!([]);
        }
        let queries = self.queries.iter().zip('A'..).map(|(query, letter)| {
            let unit = self
                .units
                .iter()
                .find(|(column, _)| *column == query.legend);
            // The column of the only query has no letter.
            let only = if self.queries.len() == 1 { "?" } else { "" };
            let column = format!("/^Value( #{letter}){only}$/");
            json!({
                "matcher": { "id": "byRegexp", "options": column },
                "properties": [
                    { "id": "displayName", "value": query.legend },
                    { "id": "unit", "value": unit.map_or(self.unit, |(_, unit)| unit) },
                ],
            })
        });
        let sentences = json!({
            "matcher": { "id": "byName", "options": "reason" },
            "properties": [{ "id": "custom.width", "value": SENTENCE_WIDTH }],
        });
        queries.chain([sentences]).collect()
    }

    /// Whether the legend says which of several things a number is about.
    fn names_series(&self) -> bool {
        let mut queries = self.queries.iter();
        queries.any(|query| query.legend.contains("{{"))
    }

    fn options(&self) -> Value {
        match self.shape {
            Shape::Stat => json!({
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "colorMode": "value", "graphMode": "none",
                // Grafana leaves the name of a single number out.
                "textMode": if self.names_series() { "value_and_name" } else { "auto" },
            }),
            Shape::Lines | Shape::Stack => json!({
                "legend": {
                    "displayMode": "table", "placement": "right", "calcs": ["mean", "max"],
                    "sortBy": "Max", "sortDesc": true,
                },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Shape::Heatmap => json!({
                "calculate": false, "cellGap": 1, "yAxis": { "unit": self.unit },
                "color": { "mode": "scheme", "scheme": "Oranges", "scale": "exponential",
                           "exponent": 0.5, "steps": 64 },
                "tooltip": { "mode": "single", "yHistogram": true },
                "legend": { "show": true },
            }),
            Shape::Table => {
                let first = self.queries.first().map(|query| query.legend);
                json!({ "showHeader": true, "sortBy": [{ "displayName": first, "desc": true }] })
            }
        }
    }
}

impl Shape {
    const fn plugin(self) -> &'static str {
        match self {
            Self::Stat => "stat",
            Self::Lines | Self::Stack => "timeseries",
            Self::Heatmap => "heatmap",
            Self::Table => "table",
        }
    }
}
