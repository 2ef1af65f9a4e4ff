package main

import (
	"context"
	"strings"
)

// tierOf is the tier in a counter's labels.
func tierOf(labels string) string {
	_, rest, _ := strings.Cut(labels, `tier="`)
	tier, _, _ := strings.Cut(rest, `"`)
	return tier
}

func (b *bench) growthSuite(ctx context.Context) ([]Section, error) { return nil, nil }
