// Package docs runs and loads what the README and docs/ show in fenced blocks.
package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-auth/caddy-auth/caddymodule"
)

// fence is a fenced block of a document.
type fence struct {
	file, language, text string
	line                 int
}

func (f *fence) at() string { return fmt.Sprintf("%s:%d", filepath.Base(f.file), f.line) }

// fences are those of the README and of docs/.
func fences(t *testing.T) (out []fence) {
	t.Helper()
	files, _ := filepath.Glob("../../docs/*.md")
	for _, file := range append(files, "../../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var open *fence
		for i, line := range strings.Split(string(text), "\n") {
			switch {
			case strings.HasPrefix(line, "```") && open == nil:
				open = &fence{file: file, language: strings.TrimPrefix(line, "```"), line: i + 1}
			case strings.HasPrefix(line, "```"):
				out = append(out, *open)
				open = nil
			case open != nil:
				open.text += line + "\n"
			}
		}
	}
	return out
}

// languages are those that blocks may have. What has another is run by nobody.
var languages = []string{"caddyfile", "sh", "json", "text", "js", "toml"}

func TestFences_HaveALanguage(t *testing.T) {
	for _, f := range fences(t) {
		if !slices.Contains(languages, f.language) {
			t.Errorf("%s: the language %q: want one of %q; text is for what is no sample", f.at(), f.language, languages)
		}
		if f.language == "json" && !json.Valid([]byte(f.text)) {
			t.Errorf("%s is no JSON", f.at())
		}
	}
}

// TestCaddyfiles: every Caddyfile in the documents validates: a whole one as it
// stands, a part of one where its first word belongs.
func TestCaddyfiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"login": "s3cret\n", "billing": "s3cret\n", "master-key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"PGPASSWORD", "REDIS_PASSWORD", "MAPS_KEY", "INTROSPECTION_SECRET"} {
		t.Setenv(name, "a-secret-for-tests")
	}
	places := strings.NewReplacer("/run/secrets/", dir+"/", "/etc/caddy-auth/", dir+"/", "/var/lib/caddy-auth/", dir+"/")
	seen := 0
	for _, f := range fences(t) {
		if f.language != "caddyfile" {
			continue
		}
		seen++
		if err := validate(places.Replace(whole(f.text))); err != nil {
			t.Errorf("%s: %v", f.at(), err)
		}
	}
	if seen < 20 {
		t.Errorf("only %d Caddyfiles were found", seen)
	}
}

const globalBlock = "{\n\tlog {\n\t\tformat auth_redact\n\t}\n\tauth {\n\t\tstore sqlite /var/lib/caddy-auth/auth.db\n%s\t}\n}\n"

// siteAddress is the first line of a site's block.
var siteAddress = regexp.MustCompile(`^(https?://)?[a-z0-9.-]*(\.[a-z]+|:[0-9]+)[^ ]* \{$`)

// whole makes a whole Caddyfile of a sample. What begins with the global block, or
// has none but a site, is whole but for what every Caddyfile has. Of the rest the
// first word tells where it belongs.
func whole(text string) string {
	first, _, _ := strings.Cut(strings.TrimLeft(text, "\n"), "\n")
	word, _, _ := strings.Cut(first, " ")
	switch {
	case first == "{":
		return text
	case siteAddress.MatchString(first):
		return fmt.Sprintf(globalBlock, "") + text
	case word == "redis" || word == "identity_headers" || word == "leaked" || word == "limits":
		return fmt.Sprintf(globalBlock, text) + "api.example.com {\n\tauth\n}\n"
	}
	return fmt.Sprintf(globalBlock, "") + "api.example.com {\n" + text + "}\n"
}

func validate(text string) error {
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	var cfg caddy.Config
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		return err
	}
	cfg.Admin = &caddy.AdminConfig{Disabled: true}
	return caddy.Validate(&cfg)
}

// TestCommands: every command in the documents does what it is shown for, in the
// order of the documents, but that what ends keys and the store comes last.
func TestCommands(t *testing.T) {
	s := newSandbox(t)
	ran := 0
	ends := []string{"rotate", "key find", "revoke", "store restore", "store copy"} // keys, then the store
	last := make([][]fence, len(ends)+1)
	for _, f := range fences(t) {
		if f.language != "sh" {
			continue
		}
		when := 0
		for i, end := range ends {
			if strings.Contains(f.text, end) {
				when = i + 1
			}
		}
		last[when] = append(last[when], f)
	}
	for _, f := range slices.Concat(last...) {
		ran += s.runBlock(t, &f)
	}
	if ran < 12 {
		t.Errorf("only %d blocks were run", ran)
	}
}

func (s *sandbox) runBlock(t *testing.T, f *fence) int {
	script := s.script(t, f)
	if strings.TrimSpace(script) == "" {
		return 0
	}
	prelude := ""
	switch {
	case strings.Contains(script, `"$ID:$SECRET"`): // what the first line printed
		made := s.must("caddy-auth client create --owner acme-billing --scope orders:read --json")
		var client struct{ ID, Secret string }
		if err := json.Unmarshal([]byte(made), &client); err != nil {
			t.Fatal(err)
		}
		prelude = "ID=" + client.ID + " SECRET=" + client.Secret + "\n"
		script = strings.Replace(script, "# {", "TOKEN=$(curl -u \"$ID:$SECRET\" -d grant_type=client_credentials "+tokenURL(script)+" | jq -r .access_token) # {", 1)
		script = strings.ReplaceAll(script, "'Authorization", "\"Authorization")
		script = strings.ReplaceAll(script, "ca_at_…\"", "$TOKEN\"")
	case strings.Contains(script, "key find"): // typed on a terminal
		script = strings.ReplaceAll(script, "caddy-auth key find ", "caddy-auth key find < key.txt ")
	}
	script = strings.ReplaceAll(script, "curl ", "curl -sS --fail-with-body ")
	out, err := s.run(prelude + script)
	if err != nil {
		t.Errorf("%s: %v\n%s\n%s", f.at(), err, script, out)
	}
	return 1
}

func tokenURL(script string) string {
	return regexp.MustCompile(`http://[^ \n]+/oauth/token`).FindString(script)
}
