package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// pastedLine is a line that was typed or piped in: a secret, or any text with
// secrets in it, such as a line of a log or a curl command.
type pastedLine struct {
	number int // from 1
	text   auth.Secret
}

// maxPasted is how much is read from standard input, in bytes.
const maxPasted = 16 << 20

// readPasted reads lines that are or hold secrets: one without echo from a terminal,
// else all of standard input. Empty ones are left out.
func (s *session) readPasted(prompt string) ([]pastedLine, error) {
	if f, ok := s.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(s.err, prompt)
		line, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(s.err)
		if err != nil {
			return nil, fmt.Errorf("reading from the terminal: %w", err)
		}
		return []pastedLine{{1, auth.NewSecret(strings.TrimSpace(string(line)))}}, nil
	}
	text, err := io.ReadAll(io.LimitReader(s.in, maxPasted+1))
	if err != nil {
		return nil, fmt.Errorf("reading standard input: %w", err)
	}
	if len(text) > maxPasted {
		return nil, auth.WithHint(usagef("more than %d MB on standard input", maxPasted>>20), "pipe in a part at a time")
	}
	var out []pastedLine
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, pastedLine{number, auth.NewSecret(line)})
		}
	}
	if len(out) == 0 {
		return nil, usagef("nothing on standard input, want one key a line, or any text with keys in it")
	}
	return out, nil
}

// candidates returns the texts in a line that may be secrets: the whole line, texts
// with the shape of this gateway's keys, and imported keys, in each stage of decoding.
func (l *pastedLine) candidates(imported *auth.Imported) (out []auth.Secret) {
	const mostStages = 4
	line := l.text.Reveal()
	texts := []string{line}
	for range mostStages {
		for _, shaped := range manage.KeyShaped(line) {
			texts = append(texts, shaped)
			// Letters may be glued to it, as in "\nca_live_…" of a line of JSON.
			for i := 1; i < strings.IndexByte(shaped, '_'); i++ {
				texts = append(texts, shaped[i:])
			}
		}
		spans, _ := imported.FindAll(line)
		for _, span := range spans {
			texts = append(texts, line[span.Start:span.End])
		}
		next := redact.DecodeOnce(line)
		if next == line {
			break
		}
		line = next
	}
	for i, text := range texts {
		if !slices.Contains(texts[:i], text) {
			out = append(out, auth.NewSecret(text))
		}
	}
	return out
}

// findPasted calls found with everything in the lines that find knows, and returns
// the numbers of the lines in which there is nothing of the kind. Where the only
// line is unknown it returns why find did not know it, with its hint.
func findPasted[T any](ctx context.Context, o *opened, lines []pastedLine, find func(context.Context, auth.Secret) (T, error), found func(T) error) (unknown []int, why error, err error) {
	imported, _, err := o.db.Imported(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range lines {
		known := false
		for _, text := range lines[i].candidates(imported) {
			v, err := find(ctx, text)
			if errors.Is(err, auth.ErrNotFound) {
				if why == nil || auth.Hint(err) != "" {
					why = err
				}
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			known = true
			if err := found(v); err != nil {
				return nil, nil, err
			}
		}
		if !known {
			unknown = append(unknown, lines[i].number)
		}
	}
	return unknown, why, nil
}

// unknownLines is the error about lines in which there was nothing known. what is
// what was looked for, in the plural; rest says what became of the others.
func unknownLines(what string, unknown []int, of int, why error, rest string) error {
	if len(unknown) == 0 {
		return nil
	}
	if of == 1 && why != nil {
		return why
	}
	var numbers []string
	for _, n := range unknown {
		numbers = append(numbers, strconv.Itoa(n))
	}
	const most = 20
	if len(numbers) > most {
		numbers = append(numbers[:most], "…")
	}
	word := "lines"
	if len(unknown) == 1 {
		word = "line"
	}
	return auth.WithHint(fmt.Errorf("%d of %d lines hold no %s of this store (%s %s): %w", len(unknown), of, what, word, strings.Join(numbers, ", "), auth.ErrNotFound), rest)
}
