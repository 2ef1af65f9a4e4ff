package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestMutants_Apply: every sabotage of make mutate still fits the code. That a
// test notices each is for make mutate to show, which takes minutes.
func TestMutants_Apply(t *testing.T) {
	patches, err := filepath.Glob("mutate/*.patch")
	if err != nil || len(patches) < 10 {
		t.Fatalf("%d patches, %v", len(patches), err)
	}
	for _, p := range patches {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\n--- a/")
		file, _, _ := strings.Cut(rest, "\n")
		dir := t.TempDir()
		original, err := os.ReadFile(filepath.Join("..", file))
		if err != nil {
			t.Errorf("%s: %v", p, err)
			continue
		}
		at := filepath.Join(dir, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, original, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("patch", "-s", "-p1", "--fuzz=0")
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(string(text))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %s", p, out)
		}
	}
}
