/* A WordPiece tokenizer for English text: what BERT's uncased models read. Letters are lower-cased where they are ASCII; every ASCII punctuation
 * mark is a word; other bytes are parts of words as they are. (Accents are not stripped and Chinese is not cut: the library of the model's own
 * tokenizer does that.) */
#ifndef WORDPIECE_H
#define WORDPIECE_H

#include <stddef.h>
#include <stdint.h>

typedef struct wordpiece wordpiece;

/* The vocabulary in a file with a piece on each line; NULL when it cannot be read or lacks [CLS], [SEP] or [UNK]. */
wordpiece *wordpiece_open(const char *path);
void wordpiece_close(wordpiece *w);

/* Writes [CLS] pieces [SEP]; gives how many that are, which may be more than there is room for. */
size_t wordpiece_encode(const wordpiece *w, const char *text, int64_t *ids, size_t room);

#endif
