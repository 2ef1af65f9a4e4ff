package auth

// KeyTailLen is the length of what follows the second underscore of a key:
// 43 characters of random text and 8 of tag, all base62.
const KeyTailLen = 43 + 8

// IsBase62 reports whether c is one of the 62 characters keys are made of.
func IsBase62(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
}
