#include "wordpiece.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORD 100 /* bytes; a longer word is unknown */
#define MAX_LINE 512

typedef struct {
    char *text;
    int64_t id;
} piece;

struct wordpiece {
    piece *table; /* open addressing */
    size_t size, used;
    int64_t cls, sep, unknown;
};

static size_t slot(const wordpiece *w, const char *text, size_t length) {
    size_t h = 1469598103u, i;
    for (i = 0; i < length; i++) h = (h ^ (unsigned char)text[i]) * 16777619u;
    for (h &= w->size - 1; w->table[h].text != NULL; h = (h + 1) & (w->size - 1))
        if (strlen(w->table[h].text) == length && memcmp(w->table[h].text, text, length) == 0) break;
    return h;
}

static int64_t find(const wordpiece *w, const char *text, size_t length) {
    const piece *p = &w->table[slot(w, text, length)];
    return p->text == NULL ? -1 : p->id;
}

wordpiece *wordpiece_open(const char *path) {
    FILE *file = fopen(path, "r");
    wordpiece *w = file == NULL ? NULL : calloc(1, sizeof *w);
    char line[MAX_LINE];
    int64_t id = 0;
    if (w != NULL) {
        w->size = (size_t)1 << 18;
        w->table = calloc(w->size, sizeof *w->table);
    }
    while (w != NULL && w->table != NULL && fgets(line, sizeof line, file) != NULL) {
        size_t length = strcspn(line, "\r\n"), at;
        if (2 * w->used >= w->size) break; /* no vocabulary of BERT is that large */
        at = slot(w, line, length);
        if (w->table[at].text == NULL) {
            w->table[at].text = malloc(length + 1);
            if (w->table[at].text == NULL) break;
            memcpy(w->table[at].text, line, length);
            w->table[at].text[length] = 0;
            w->table[at].id = id;
            w->used++;
        }
        id++;
    }
    if (file != NULL) fclose(file);
    if (w == NULL) return NULL;
    if (w->table == NULL || (w->cls = find(w, "[CLS]", 5)) < 0 || (w->sep = find(w, "[SEP]", 5)) < 0 || (w->unknown = find(w, "[UNK]", 5)) < 0) {
        wordpiece_close(w);
        return NULL;
    }
    return w;
}

void wordpiece_close(wordpiece *w) {
    size_t i;
    if (w == NULL) return;
    for (i = 0; w->table != NULL && i < w->size; i++) free(w->table[i].text);
    free(w->table);
    free(w);
}

static void put(int64_t id, int64_t *ids, size_t room, size_t *count) {
    if (*count < room) ids[*count] = id;
    ++*count;
}

/* The longest pieces from the left; [UNK] for all of the word when some part of it has none. */
static void encode_word(const wordpiece *w, const char *word, size_t length, int64_t *ids, size_t room, size_t *count) {
    size_t before = *count, begin = 0;
    char text[MAX_WORD + 3] = "##";
    if (length > MAX_WORD) {
        put(w->unknown, ids, room, count);
        return;
    }
    while (begin < length) {
        size_t end = length;
        int64_t id = -1;
        for (; end > begin; end--) {
            memcpy(text + 2, word + begin, end - begin);
            id = begin == 0 ? find(w, text + 2, end) : find(w, text, end - begin + 2);
            if (id >= 0) break;
        }
        if (id < 0) {
            *count = before;
            put(w->unknown, ids, room, count);
            return;
        }
        put(id, ids, room, count);
        begin = end;
    }
}

size_t wordpiece_encode(const wordpiece *w, const char *text, int64_t *ids, size_t room) {
    size_t count = 0, length;
    char word[MAX_WORD + 1];
    put(w->cls, ids, room, &count);
    while (*text != 0) {
        unsigned char c = (unsigned char)*text;
        if (c < 128 && (isspace(c) || iscntrl(c))) {
            text++;
            continue;
        }
        for (length = 0; *text != 0; text++) {
            c = (unsigned char)*text;
            if (c < 128 && (isspace(c) || iscntrl(c) || (ispunct(c) && length > 0))) break;
            if (length <= MAX_WORD) word[length < MAX_WORD ? length : MAX_WORD] = (char)(c < 128 ? tolower(c) : c);
            length++;
            if (c < 128 && ispunct(c)) {
                text++;
                break;
            }
        }
        encode_word(w, word, length, ids, room, &count);
    }
    put(w->sep, ids, room, &count);
    return count;
}
