package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	docCommand = regexp.MustCompile("`(?:go test )?(\\./)?((?:internal|test|caddymodule)[a-z0-9_/]*)(?:/\\.\\.\\.)?(?: -run ('[^']+'|[A-Za-z_]+))?")
	docLink    = regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	testName   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
)

// TestDocs_CommandsAndLinks: every test that a document names exists, and so
// does every file it links to.
func TestDocs_CommandsAndLinks(t *testing.T) {
	files, _ := filepath.Glob("../docs/*.md")
	more, _ := filepath.Glob("../docs/decisions/*.md")
	files = append(append(files, more...), "../README.md")
	commands := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range docCommand.FindAllStringSubmatch(string(text), -1) {
			dir, pattern := filepath.Join("..", m[2]), strings.Trim(m[3], "'")
			if pattern == "" { // a file or a package
				if found, _ := filepath.Glob(dir + "*"); len(found) == 0 {
					t.Errorf("%s: there is no %s", file, m[2])
				}
				continue
			}
			commands++
			names := testsIn(t, dir)
			for _, p := range strings.Split(strings.ReplaceAll(pattern, `\|`, "|"), "|") {
				if !regexp.MustCompile(p).MatchString(names) {
					t.Errorf("%s: no test in %s matches %s", file, m[2], p)
				}
			}
		}
		for _, m := range docLink.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", file, m[1], err)
			}
		}
	}
	if commands < 20 {
		t.Errorf("only %d commands were found", commands)
	}
}

func testsIn(t *testing.T, dir string) string {
	t.Helper()
	var names strings.Builder
	found, _ := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, f := range found {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range testName.FindAllStringSubmatch(string(text), -1) {
			names.WriteString(m[1] + "\n")
		}
	}
	return names.String()
}
