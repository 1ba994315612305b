/* Rows of measurements, JSON objects, as `colac sweep` writes them and `colac chart` reads
 * them. */
#include "driver/driver.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const json_t *value_in_row(const json_t *row, const char *key) {
    const json_t *value = json_object_get(row, key);
    const char *dot = strchr(key, '.');
    if (value || !dot)
        return value;
    char *first = checked_alloc((size_t)(dot - key) + 1);
    memcpy(first, key, (size_t)(dot - key));
    const json_t *inner = json_object_get(row, first);
    free(first);
    return inner ? value_in_row(inner, dot + 1) : NULL;
}

double number_in_row(const json_t *row, const char *key) {
    const json_t *value = key ? value_in_row(row, key) : NULL;
    return json_is_number(value) ? json_number_value(value) : (double)NAN;
}

void put_row(const json_t *row, Text *out) {
    char *line = json_dumps(row, JSON_COMPACT);
    INTERNAL_CHECK(line);
    text_printf(out, "%s\n", line);
    free(line);
}

Mean mean_of(const double *values, int64_t count) {
    Mean mean = {.count = count};
    for (int64_t i = 0; i < count; i++)
        mean.value += values[i] / (double)count;
    for (int64_t i = 0; i < count; i++)
        mean.spread += (values[i] - mean.value) * (values[i] - mean.value);
    mean.spread = count > 1 ? sqrt(mean.spread / (double)(count - 1)) : 0;
    return mean;
}
