package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is what was measured.
type Report struct {
	Date     string    `json:"date"`
	Machine  string    `json:"machine"`
	Sections []Section `json:"sections"`
}

// Section is the outcome of a suite, or a part of it.
type Section struct {
	Suite   string   `json:"suite"`
	Title   string   `json:"title"`
	Text    string   `json:"text,omitempty"`
	Rows    []Row    `json:"rows,omitempty"`
	Figures []Figure `json:"figures,omitempty"`
	Date    string   `json:"date,omitempty"` // when it was measured
	Machine string   `json:"machine,omitempty"`
}

// Row compares CPU per request. Medians, unless it says otherwise.
type Row struct {
	Name     string  `json:"name"`
	Ratio    float64 `json:"ratio"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	Bound    float64 `json:"bound,omitempty"`
	Pairs    int     `json:"pairs"`
	Micros   float64 `json:"micros"`
	Base     float64 `json:"base_micros"`
	Mallocs  float64 `json:"mallocs"` // per request, more than the base's
	Bytes    float64 `json:"bytes"`
	GCs      float64 `json:"gcs"` // collections in a slice
	Counted  bool    `json:"counted"`
	Resident float64 `json:"resident_mib,omitempty"`
}

// Figure is any other number.
type Figure struct {
	Name  string  `json:"name"`
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
	Bound float64 `json:"bound,omitempty"`
	Exact bool    `json:"zero,omitempty"` // must be 0
	Note  string  `json:"note,omitempty"`
	Self  float64 `json:"self,omitempty"` // the same of plain Caddy against itself; 0: not measured
}

// selfRow is the baseline against itself.
const selfRow = "plain Caddy / itself (A/A)"

// noisy reports whether the baseline differed from itself by more than a
// twentieth, in the same slices: then ratios are not judged.
func (s Section) noisy() bool {
	for _, row := range s.Rows {
		if row.Name == selfRow && (row.Ratio < 0.95 || row.Ratio > 1.05) {
			return true
		}
	}
	return false
}

func judge(value, bound float64, noisy bool) string {
	switch {
	case bound == 0:
		return ""
	case noisy:
		return "too noisy"
	case value <= bound:
		return "met"
	default:
		return fmt.Sprintf("**not met**, by %.0f %%", 100*(value/bound-1))
	}
}

func (f Figure) verdict(noisy bool) string {
	if f.Exact && f.Value != 0 {
		return "**not met**: must be 0"
	}
	if f.Exact {
		return "met"
	}
	// A tail is noisier than a median: what plain Caddy differs from itself by must
	// stay within what is asked of the gateway.
	if f.Self != 0 {
		noisy = f.Self > max(f.Bound, 1.05) || f.Self < 1/max(f.Bound, 1.05)
	}
	return judge(f.Value, f.Bound, noisy)
}

// verdict fails if what must be 0 isn't. Times depend on the machine: they are
// printed, and judged by who reads them.
func (r *Report) verdict() error {
	for _, s := range r.Sections {
		for _, f := range s.Figures {
			if f.Exact && f.Value != 0 {
				return fmt.Errorf("%s: %v %s, must be 0", f.Name, f.Value, f.Unit)
			}
		}
	}
	return nil
}

func (row Row) cells(noisy bool) []string {
	counted := []string{"", "", ""}
	if row.Counted {
		counted = []string{fmt.Sprintf("%+.1f", row.Mallocs), fmt.Sprintf("%+.0f", row.Bytes), fmt.Sprintf("%.0f", row.GCs)}
	}
	resident := ""
	if row.Resident > 0 {
		resident = fmt.Sprintf("%.0f", row.Resident)
	}
	bound := ""
	if row.Bound > 0 {
		bound = fmt.Sprintf("%.2f", row.Bound)
	}
	verdict := judge(row.Ratio, row.Bound, noisy)
	if row.Name == selfRow {
		if verdict = "quiet enough"; noisy {
			verdict = "**machine too noisy**"
		}
	}
	return append(append([]string{row.Name, fmt.Sprintf("%.3f", row.Ratio), fmt.Sprintf("%.2f-%.2f", row.Min, row.Max), fmt.Sprintf("%.1f / %.1f", row.Micros, row.Base)}, counted...), resident, bound, verdict)
}

var rowHead = []string{"CPU per request", "ratio", "min-max", "µs", "allocations", "bytes", "GCs", "MiB", "bound", ""}

func (f Figure) cells(noisy bool) []string {
	bound := ""
	if f.Bound > 0 {
		bound = fmt.Sprint(f.Bound)
	}
	if f.Exact {
		bound = "0"
	}
	note := f.Note
	if f.Self != 0 {
		note = fmt.Sprintf("%s; plain Caddy / itself %.2f", note, f.Self)
	}
	return []string{f.Name, strings.TrimSpace(fmt.Sprintf("%.4g %s", f.Value, f.Unit)), note, bound, f.verdict(noisy)}
}

var figureHead = []string{"figure", "value", "", "bound", ""}

// print writes a report for a terminal.
func print(w io.Writer, r *Report) {
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	line := func(cells []string) {
		fmt.Fprintln(tab, strings.NewReplacer("**", "").Replace(strings.Join(cells, "\t")))
	}
	for _, s := range r.Sections {
		fmt.Fprintf(tab, "\n%s\n", s.Title)
		if len(s.Rows) > 0 {
			line(rowHead)
		}
		for _, row := range s.Rows {
			line(row.cells(s.noisy()))
		}
		for _, f := range s.Figures {
			line(f.cells(s.noisy()))
		}
		if s.Text != "" {
			fmt.Fprintln(tab, s.Text)
		}
	}
	_ = tab.Flush()
}

// save writes a report to a folder. Suites that did not run now keep what was
// measured before, on the same machine.
func save(dir string, r *Report) error {
	path := filepath.Join(dir, "benchmarks.json")
	var before Report
	if text, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(text, &before); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	ran := func(name string) bool {
		return slices.ContainsFunc(r.Sections, func(s Section) bool { return s.Suite == name })
	}
	var all []Section
	for _, suite := range suites {
		from := before.Sections
		if ran(suite.name) {
			from = r.Sections
		}
		for _, s := range from {
			if s.Suite == suite.name && (s.Machine == r.Machine || ran(suite.name)) {
				if ran(suite.name) {
					s.Date, s.Machine = r.Date, r.Machine
				}
				all = append(all, s)
			}
		}
	}
	whole := &Report{Date: r.Date, Machine: r.Machine, Sections: all}
	text, err := json.MarshalIndent(whole, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(path, append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "benchmarks.md"), []byte(markdown(whole)), 0o644),
		os.WriteFile(filepath.Join(dir, "benchmarks.svg"), []byte(chart(whole)), 0o644))
}

func markdown(r *Report) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# Benchmarks\n\nWritten by `make bench`, `make bench-peers` and `make bench-growth`; how it is measured, and what it means: [performance.md](performance.md).\n\n")
	fmt.Fprintf(&out, "%s. Ratios are of CPU per request, to plain Caddy in the same binary without `auth` and with the same GOGC unless a row says otherwise; medians of slices in\n", r.Machine)
	fmt.Fprintf(&out, "which what is compared was loaded at once. Allocations and bytes are a request's above the base's; GCs are collections in a slice.\n\n![CPU per request against plain Caddy](benchmarks.svg)\n")
	for _, s := range r.Sections {
		fmt.Fprintf(&out, "\n## %s\n\n", s.Title)
		if len(s.Rows) > 0 {
			table(&out, rowHead)
			for _, row := range s.Rows {
				cells(&out, row.cells(s.noisy()))
			}
			out.WriteString("\n")
		}
		if len(s.Figures) > 0 {
			table(&out, figureHead)
			for _, f := range s.Figures {
				cells(&out, f.cells(s.noisy()))
			}
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "%s\n", strings.TrimSpace(fmt.Sprintf("%s Measured %s.", s.Text, cmp.Or(s.Date, r.Date))))
	}
	return out.String()
}

func table(out *strings.Builder, head []string) {
	cells(out, head)
	out.WriteString(strings.Repeat("|---", len(head)) + "|\n")
}

func cells(out *strings.Builder, c []string) {
	fmt.Fprintf(out, "| %s |\n", strings.Join(c, " | "))
}

// machine describes where this runs.
func machine() string {
	model := runtime.GOARCH
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores (%s), %s, %s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.Version(), pinning())
}
