//! The report in a real browser: it shows everything, says nothing on the console and asks nobody for anything.

use crate::cli_report::{aged, report};
use crate::harness::{Dir, has_program, skip};
use std::time::Duration;

const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
const TIMEOUT: Duration = Duration::from_secs(90);

/// A browser without a window, that reaches no network.
struct Browser {
    program: &'static str,
    dir: Dir,
}

/// What came of opening a page.
struct Visit {
    /// The document as the browser has it in the end.
    dom: String,
    /// What it says on the console.
    console: Vec<String>,
    /// What the page (not the browser for itself) asks the network for.
    requests: Vec<String>,
}

impl Browser {
    fn find() -> Option<Self> {
        let program = BROWSERS.into_iter().find(|program| has_program(program));
        if program.is_none() {
            skip("no chromium to open the report in");
        }
        Some(Self { program: program?, dir: Dir::new() })
    }

    /// Runs it on `page` with more options; returns what it prints and what it says.
    fn run(&self, page: &str, options: &[String]) -> (String, String) {
        let output = assert_cmd::Command::new(self.program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND"])
            .arg(format!("--user-data-dir={}", self.dir.path("profile").display()))
            .args(options)
            .arg(format!("file://{}", self.dir.path(page).display()))
            .timeout(TIMEOUT)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {stderr}", self.program);
        (String::from_utf8(output.stdout).unwrap(), stderr)
    }

    fn visit(&self, page: &str) -> Visit {
        let log = self.dir.path("net.json");
        let (dom, stderr) =
            self.run(page, &["--dump-dom".to_owned(), format!("--log-net-log={}", log.display())]);
        let console = stderr.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
        let log: serde_json::Value = serde_json::from_slice(&std::fs::read(log).unwrap()).unwrap();
        let start = &log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"];
        assert!(start.is_u64());
        let of_the_page = log["events"].as_array().unwrap().iter().filter(|event| {
            let initiator = event["params"]["initiator"].as_str();
            event["type"] == *start && initiator.is_some_and(|initiator| initiator != "not an origin")
        });
        let requests = of_the_page.map(|event| event["params"]["url"].to_string()).collect();
        Visit { dom, console, requests }
    }

    fn picture(&self, page: &str, options: &[&str]) -> Vec<u8> {
        let path = self.dir.path("shot.png");
        let mut all = vec!["--window-size=1100,4600".to_owned(), format!("--screenshot={}", path.display())];
        all.extend(options.iter().map(ToString::to_string));
        self.run(page, &all);
        std::fs::read(path).unwrap()
    }
}

#[test]
fn the_report_is_whole_quiet_and_alone() {
    let Some(browser) = Browser::find() else { return };
    aged(&browser.dir, 30, |day| Some(format!("<script>document.title='{day}'</script>")));
    browser.dir.write("report.html", &report(&browser.dir, "aged.snap").expect(0).stdout);
    let visit = browser.visit("report.html");
    assert!(visit.console.is_empty(), "{:?}", visit.console);
    assert!(visit.requests.is_empty(), "{:?}", visit.requests);
    for (what, count) in [("<figure>", 6), ("<table>", 5), ("<svg ", 6), ("<script", 0), ("role=\"img\"", 6)]
    {
        assert_eq!(visit.dom.matches(what).count(), count, "{what}");
    }
    assert!(visit.dom.contains("<title>aged.snap</title>"), "a name ran as a script");
    let bright = browser.picture("report.html", &[]);
    // A page without content is a few kilobytes.
    assert!(bright.len() > 100_000, "{} bytes", bright.len());
    assert!(
        bright == browser.picture("report.html", &["--blink-settings=scriptEnabled=false"]),
        "scripts matter"
    );
    assert!(
        bright != browser.picture("report.html", &["--blink-settings=preferredColorScheme=0"]),
        "dark is bright"
    );
}

#[test]
fn a_page_that_is_not_quiet_or_not_alone_is_noticed() {
    let Some(browser) = Browser::find() else { return };
    let page = "<!DOCTYPE html><img src=\"http://example.invalid/a.png\"><script>nowhere()</script>";
    browser.dir.write("bad.html", page.as_bytes());
    let visit = browser.visit("bad.html");
    assert!(visit.console.iter().any(|line| line.contains("nowhere is not defined")), "{:?}", visit.console);
    assert_eq!(visit.requests, ["\"http://example.invalid/a.png\""]);
}
