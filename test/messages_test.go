package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// TestMessages_SurviveTheMask: what our own errors, hints and logs say is not what
// their mask takes for a secret: an operator would read REDACTED where the help
// stands.
func TestMessages_SurviveTheMask(t *testing.T) {
	m := redact.NewMasker()
	seen := 0
	for _, root := range []string{"../caddymodule", "../internal", "../cmd", "../upstream"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "storetest") {
				return err
			}
			if name := d.Name(); strings.HasPrefix(name, "command") || name == "extract.go" {
				return nil // for a terminal, and for clients: nothing masks them
			}
			files := token.NewFileSet()
			f, err := parser.ParseFile(files, path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(f, func(n ast.Node) bool {
				text, at, whole := message(n)
				if !whole {
					return true
				}
				if !strings.Contains(text, " ") || strings.HasPrefix(text, "SELECT") {
					return false
				}
				seen++
				if masked := m.String(text); masked != text {
					t.Errorf("%s: %q is logged as %q", files.Position(at), text, masked)
				}
				return false
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if seen < 1000 {
		t.Errorf("only %d messages were looked at", seen)
	}
}

// message is a text in the source, put together where it is in several parts.
func message(n ast.Node) (text string, at token.Pos, ok bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		if n.Kind != token.STRING {
			return "", 0, false
		}
		s, err := strconv.Unquote(n.Value)
		return s, n.Pos(), err == nil
	case *ast.BinaryExpr:
		left, at, ok := message(n.X)
		right, _, also := message(n.Y)
		return left + right, at, n.Op == token.ADD && ok && also
	}
	return "", 0, false
}
