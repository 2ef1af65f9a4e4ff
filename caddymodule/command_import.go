package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

func importFlags(c *cobra.Command) {
	c.Flags().String("pattern", "", "what the keys look like: literals, classes and counts, such as 'sk_live_[A-Za-z0-9]{32}'")
	c.Flags().String("format", "imported", "what to call keys of this pattern")
	c.Flags().String("type", "", "csv or json (default: by the file's name)")
	c.Flags().Bool("dry-run", false, "only check all of the file")
	c.Flags().Bool("skip-refused", false, "import what can be, although some rows can't")
	waitFlags(c)
}

const importLong = `Imports keys that were made elsewhere, so that clients need no new ones.

The file has one key a row: CSV with a line of names, or JSON objects, in a list
or one a line. Names: key (its text) or sha256 (of its text, in hex), owner, and
as wanted name, env, scopes (separated by blanks), allow_ip (likewise), meta
(name=value, separated by blanks), expires (a time, or a duration such as 90d),
hint.

All of the file is checked before the first key is written. Running it again
leaves what is there as it is.`

// shownRefusals is how many refused rows are told one by one.
const shownRefusals = 20

// importer is one run of key import.
type importer struct {
	s       *session
	pattern *manage.Pattern
	file    *importFile
	skip    bool

	rows, refused int64
	count         manage.ImportCount
}

func keyImport(ctx context.Context, s *session) error {
	im, err := s.newImporter()
	if err != nil {
		return err
	}
	dry, _ := s.cmd.Flags().GetBool("dry-run")
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	shown := s.progress()
	err = im.check(ctx, o, shown)
	shown.end()
	if err != nil {
		return err
	}
	can := im.rows - im.refused - int64(im.count.Present)
	s.note("%s can be imported as %s (a pattern that leaves about %.0f bits open), already there: %d, refused: %d",
		plural(int(can), "1 row", "%d rows"), im.pattern.Name, im.pattern.Bits(), im.count.Present, im.refused)
	if im.refused > 0 && !im.skip {
		return auth.WithHint(auth.Invalidf("%d of %d rows %s refused; nothing was imported", im.refused, im.rows, plural(int(im.refused), "is", "are")), "mend them, or import the others with --skip-refused")
	}
	if dry {
		return im.report(true)
	}
	err = im.write(ctx, o, shown)
	shown.end()
	if err != nil && auth.Hint(err) == "" {
		err = auth.WithHint(err, "what was imported so far stays; run it again to go on")
	}
	if err != nil {
		return err
	}
	if len(im.count.Owners) > 0 {
		s.note("note: %d new owners: %s", len(im.count.Owners), strings.Join(im.count.Owners[:min(5, len(im.count.Owners))], ", "))
	}
	s.note("imported %d keys, already there: %d; if the file holds keys in clear, remove it", im.count.Created, im.count.Present)
	if err := im.report(false); err != nil {
		return err
	}
	return s.settle(ctx, o)
}

func (s *session) newImporter() (*importer, error) {
	if err := s.wantArgs(1, 1, "one file"); err != nil {
		return nil, err
	}
	f := s.cmd.Flags()
	text, _ := f.GetString("pattern")
	name, _ := f.GetString("format")
	kind, _ := f.GetString("type")
	if text == "" {
		return nil, usagef("want --pattern, so that gateways know what such a key looks like")
	}
	pattern, err := manage.NewPattern(name, text)
	if err != nil {
		return nil, err
	}
	file, err := newImportFile(s.args[0], kind)
	if err != nil {
		return nil, err
	}
	skip, _ := f.GetBool("skip-refused")
	return &importer{s: s, pattern: pattern, file: file, skip: skip}, nil
}

func (im *importer) report(dry bool) error {
	if !im.s.json {
		return nil
	}
	return printJSON(im.s.out, map[string]any{
		"format": im.pattern.Name, "bits": int(im.pattern.Bits()), "rows": im.rows, "created": im.count.Created, "present": im.count.Present, "refused": im.refused, "dry_run": dry,
	})
}

// check reads all of the file and writes nothing.
func (im *importer) check(ctx context.Context, o *opened, shown *progress) error {
	if err := o.db.CheckFormat(ctx, im.pattern.Name, im.pattern.String()); err != nil {
		return err
	}
	lines := map[auth.Fingerprint]int{}
	known := map[string]bool{} // environments that were remarked on
	return im.batches(ctx, func(batch []*checked) error {
		fps := make([]auth.Fingerprint, 0, len(batch))
		for _, c := range batch {
			if first, again := lines[c.row.Fingerprint()]; again {
				im.refuse(c.line, fmt.Errorf("the same key as in row %d", first))
				continue
			}
			lines[c.row.Fingerprint()] = c.line
			fps = append(fps, c.row.Fingerprint())
			if env := c.row.Environment(); !known[env] {
				known[env] = true
				im.s.remarkEnvironment(o.t, env)
			}
		}
		there, err := o.db.OwnersOf(ctx, fps)
		if err != nil {
			return err
		}
		for _, c := range batch {
			if owner, ok := there[c.row.Fingerprint()]; ok && lines[c.row.Fingerprint()] == c.line {
				if owner != c.row.Owner() {
					im.refuse(c.line, fmt.Errorf("the key is there already and speaks for %s, not %s", owner, c.row.Owner()))
					continue
				}
				im.count.Present++
			}
		}
		done, total := im.file.position()
		shown.show("checking", "bytes", done, total)
		return nil
	}, true)
}

// write imports what check found good.
func (im *importer) write(ctx context.Context, o *opened, shown *progress) error {
	im.count = manage.ImportCount{}
	seen := map[auth.Fingerprint]bool{}
	return im.batches(ctx, func(batch []*checked) error {
		var rows []*manage.Imported
		for _, c := range batch {
			if !seen[c.row.Fingerprint()] {
				seen[c.row.Fingerprint()] = true
				rows = append(rows, c.row)
			}
		}
		if im.skip { // what speaks for another owner was refused
			var err error
			if rows, err = o.WithoutForeign(ctx, rows); err != nil {
				return err
			}
		}
		n, err := o.Import(ctx, im.pattern, rows)
		if err != nil {
			return err
		}
		im.count.Created, im.count.Present = im.count.Created+n.Created, im.count.Present+n.Present
		im.count.Owners = append(im.count.Owners, n.Owners...)
		done, total := im.file.position()
		shown.show("importing", "bytes", done, total)
		return nil
	}, false)
}

// checked is a row that can be imported, as far as it says itself.
type checked struct {
	line int
	row  *manage.Imported
}

// batches reads the file from its beginning and calls each for parts of it. The
// first time rows that can't be imported are told.
func (im *importer) batches(ctx context.Context, each func([]*checked) error, tell bool) error {
	if err := im.file.rewind(); err != nil {
		return err
	}
	defer im.file.close()
	now := time.Now()
	var batch []*checked
	for {
		row, line, err := im.file.next()
		if errors.Is(err, errEnd) {
			if len(batch) == 0 {
				return nil
			}
			return each(batch)
		}
		if err == nil && ctx.Err() != nil {
			return ctx.Err()
		}
		var c *manage.Imported
		if err == nil {
			c, err = im.pattern.CheckImport(row, now)
		} else if !errors.Is(err, auth.ErrInvalid) {
			return err // the rest can't be read
		}
		if tell {
			im.rows++
		}
		if err != nil {
			if tell {
				im.refuse(line, err)
			}
			continue
		}
		if batch = append(batch, &checked{line, c}); len(batch) == manage.ImportBatch {
			if err := each(batch); err != nil {
				return err
			}
			batch = nil
		}
	}
}

// refuse tells that a row can't be imported. Its text is not repeated.
func (im *importer) refuse(line int, err error) {
	if im.refused++; im.refused <= shownRefusals {
		im.s.note("row %d: %s", line, manage.Mask(im.pattern.Mask(strings.ReplaceAll(err.Error(), "\n", "; "))))
	} else if im.refused == shownRefusals+1 {
		im.s.note("more rows are refused")
	}
}

// importType is csv or json, by the flag or the file's name.
func importType(path, kind string) (string, error) {
	if kind == "" {
		lower := strings.ToLower(path)
		for _, k := range []string{"csv", "json", "jsonl", "ndjson"} {
			if strings.HasSuffix(lower, "."+k) {
				kind = k
			}
		}
	}
	switch {
	case kind == "csv":
		return "csv", nil
	case slices.Contains([]string{"json", "jsonl", "ndjson"}, kind):
		return "json", nil
	}
	return "", usagef("--type: want csv or json, which %s does not tell by its name", path)
}

// regular opens a file that can be read twice.
func regular(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the import: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = usagef("%s is no file that can be read twice: all of it is checked before anything is written", path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
