package caddymodule

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

var errEnd = errors.New("the end of the import")

// importFile reads rows from a CSV or JSON file, as often as wanted.
type importFile struct {
	path, kind string
	size       int64

	f      *os.File
	csv    *csv.Reader
	header []string
	json   *json.Decoder
	list   bool // the JSON is one list
	row    int
}

func newImportFile(path, kind string) (*importFile, error) {
	kind, err := importType(path, kind)
	if err != nil {
		return nil, err
	}
	return &importFile{path: path, kind: kind}, nil
}

// rewind goes back to the first row.
func (i *importFile) rewind() error {
	f, size, err := regular(i.path)
	if err != nil {
		return err
	}
	i.f, i.size, i.row, i.list = f, size, 0, false
	in := bufio.NewReaderSize(f, 1<<16)
	if bom, _ := in.Peek(3); bytes.Equal(bom, []byte("\xef\xbb\xbf")) { // spreadsheets write it
		_, _ = in.Discard(3)
	}
	if i.kind == "csv" {
		err = i.readHeader(in)
	} else {
		err = i.openJSON(in)
	}
	if err != nil {
		i.close()
	}
	return err
}

func (i *importFile) close() {
	if i.f != nil {
		_ = i.f.Close() // it was only read
		i.f = nil
	}
}

// position is how many bytes of how many were read.
func (i *importFile) position() (done, total int64) {
	if i.f == nil {
		return i.size, i.size
	}
	at, err := i.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, i.size
	}
	return at, i.size
}

// columns are the names that rows can have.
var columns = []string{"key", "sha256", "owner", "name", "env", "scopes", "allow_ip", "meta", "expires", "hint"}

func (i *importFile) readHeader(in io.Reader) error {
	i.csv = csv.NewReader(in)
	i.csv.ReuseRecord = true
	header, err := i.csv.Read()
	if err != nil {
		return auth.Invalidf("%s: the first line: %v", i.path, err)
	}
	i.header = nil
	for n, name := range header {
		name = strings.ToLower(strings.TrimSpace(name))
		if !slices.Contains(columns, name) || slices.Contains(i.header, name) { // it may be a key: it is not repeated
			return auth.Invalidf("%s: the name of column %d: the first line has names, each of %s at most once", i.path, n+1, strings.Join(columns, ", "))
		}
		i.header = append(i.header, name)
	}
	if !slices.Contains(i.header, "owner") {
		return auth.Invalidf("%s: no column owner", i.path)
	}
	return nil
}

func (i *importFile) openJSON(in *bufio.Reader) error {
	for {
		b, err := in.Peek(1)
		if err != nil {
			return auth.Invalidf("%s: it is empty", i.path)
		}
		if !bytes.ContainsAny(b, " \t\r\n") {
			i.list = b[0] == '['
			break
		}
		_, _ = in.Discard(1)
	}
	i.json = json.NewDecoder(in)
	i.json.DisallowUnknownFields()
	if i.list {
		if _, err := i.json.Token(); err != nil {
			return auth.Invalidf("%s: %v", i.path, err)
		}
	}
	return nil
}

// next returns the next row and its number, from 1; for CSV the first is the
// one below the names. errEnd: there is none. auth.ErrInvalid: this one is no
// good, and others may be.
func (i *importFile) next() (manage.ImportRow, int, error) {
	i.row++
	if i.kind == "json" {
		return i.nextJSON()
	}
	record, err := i.csv.Read()
	if errors.Is(err, io.EOF) {
		return manage.ImportRow{}, i.row, errEnd
	}
	if err != nil {
		var parse *csv.ParseError
		if errors.As(err, &parse) { // which does not repeat the line
			return manage.ImportRow{}, i.row, auth.Invalidf("line %d: %v", parse.Line, parse.Err)
		}
		return manage.ImportRow{}, i.row, fmt.Errorf("reading the import: %w", err)
	}
	fields := map[string]string{}
	for n, name := range i.header {
		fields[name] = strings.TrimSpace(record[n])
	}
	meta, err := readMeta(strings.Fields(fields["meta"]))
	if err != nil {
		return manage.ImportRow{}, i.row, err
	}
	row, err := importRow(fields["key"], fields["sha256"], fields["expires"])
	row.Owner, row.Name, row.Environment, row.Hint, row.Meta = fields["owner"], fields["name"], fields["env"], fields["hint"], meta
	row.Scopes, row.Networks = strings.Fields(fields["scopes"]), strings.Fields(fields["allow_ip"])
	return row, i.row, err
}

func (i *importFile) nextJSON() (manage.ImportRow, int, error) {
	if i.list && !i.json.More() {
		return manage.ImportRow{}, i.row, i.endOfList()
	}
	var in struct {
		Key, SHA256, Owner, Name, Env, Expires, Hint string
		Scopes                                       []string
		AllowIP                                      []string `json:"allow_ip"`
		Meta                                         map[string]string
	}
	err := i.json.Decode(&in)
	if errors.Is(err, io.EOF) && !i.list {
		return manage.ImportRow{}, i.row, errEnd
	}
	if err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return manage.ImportRow{}, i.row, auth.Invalidf("%s is no %s", kind.Field, kind.Type)
		}
		what := "it is no JSON" // what the decoder says may repeat a key
		if strings.Contains(err.Error(), "unknown field") {
			what = "it has a member that is none of " + strings.Join(columns, ", ")
		}
		return manage.ImportRow{}, i.row, fmt.Errorf("row %d of %s can't be read, so none after it: %s", i.row, i.path, what)
	}
	row, err := importRow(in.Key, in.SHA256, in.Expires)
	row.Owner, row.Name, row.Environment, row.Hint, row.Meta, row.Scopes, row.Networks = in.Owner, in.Name, in.Env, in.Hint, in.Meta, in.Scopes, in.AllowIP
	return row, i.row, err
}

// endOfList makes sure that a list ends, and the file with it: half a file is
// no import.
func (i *importFile) endOfList() error {
	if end, err := i.json.Token(); err != nil || end != json.Delim(']') {
		return fmt.Errorf("%s ends in the middle of its list", i.path)
	}
	if _, err := i.json.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s goes on behind its list", i.path)
	}
	return errEnd
}

func importRow(key, sha256, expires string) (manage.ImportRow, error) {
	row := manage.ImportRow{Key: auth.NewSecret(key), SHA256: sha256}
	if expires == "" {
		return row, nil
	}
	at, err := parseExpiry(expires)
	if err != nil {
		return row, auth.Invalidf("expires: want a time to come, such as 2027-01-31, a duration such as 90d, or never")
	}
	row.ExpiresAt = at
	return row, nil
}

// readMeta reads name=value pairs.
func readMeta(pairs []string) (map[string]string, error) {
	meta := map[string]string{}
	for n, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok {
			return nil, auth.Invalidf("meta: pair %d: want name=value", n+1)
		}
		meta[k] = v
	}
	return meta, nil
}
