/* The embeddings of pictures in C: for programs in C, and for other languages that can call it.
 *
 *     itae_model* model = NULL;
 *     if (itae_load("itae.onnx", NULL, &model) != ITAE_OK) { puts(itae_last_error()); return 1; }
 *     const char* paths[] = {"cat.jpg", "dog.png"};
 *     float* vectors = malloc(2 * sizeof(float) * itae_width(model));
 *     if (itae_embed_files(model, paths, 2, vectors) != ITAE_OK) puts(itae_last_error());
 *     itae_free(model);
 *
 * No exception leaves a function. Any number of threads may use one model at the same time.
 */
#ifndef ITAE_H
#define ITAE_H

#include <stddef.h>
#include <stdint.h>

#include "itae/version.h"

#define ITAE_C_EXPORT __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/** What a function returns; numbers are never given another meaning. */
typedef enum {
    ITAE_OK = 0,
    ITAE_ERROR_USAGE = 1,    /**< an argument that means nothing here */
    ITAE_ERROR_MODEL = 2,    /**< a model, its manifest or its golden sample is missing, altered or too new */
    ITAE_ERROR_IMAGE = 3,    /**< a picture can't be read */
    ITAE_ERROR_BACKEND = 4,  /**< this machine lacks something: a library, a driver, a version */
    ITAE_ERROR_IO = 5,       /**< a file can't be read */
    ITAE_ERROR_MISMATCH = 6, /**< the model gave NaN or infinity, or not the results of its golden sample */
    ITAE_ERROR_MEMORY = 7,   /**< memory ran out */
    ITAE_ERROR_INTERNAL = 8  /**< a fault of this library */
} itae_status;

/** A loaded model. */
typedef struct itae_model itae_model;

/** How to load a model. Fill it with `itae_default_options`, then change what is to be different. */
typedef struct {
    size_t struct_bytes;     /**< sizeof(itae_options), by which the library sees what the program was compiled with */
    const char* backend;     /**< `auto`, `onnxruntime`, `tensorrt` or `tensorrt-rtx` */
    const char* device;      /**< `auto`, `cpu`, `cuda` or `cuda:N` */
    const char* ort_library; /**< ONNX Runtime's shared library, or its folder; empty: looked for, as README.md says */
    int64_t batch;           /**< how many pictures to run at a time; 0: the model's preferred number */
    int threads;             /**< how many threads one run on a CPU uses; 0: chosen by the machine */
    int workers;             /**< how many threads decode pictures; 0: as `threads` */
} itae_options;

/** How a model did on its golden sample, within the limits of its manifest or not. Where a sample is left out of the
 *  figures, a flag lies so near its threshold that either value is right. */
typedef struct {
    size_t struct_bytes;     /**< sizeof(itae_verification), set before the call */
    int64_t samples;         /**< in the golden sample; 0 if they could not be run */
    int64_t left_out;        /**< how many of them the figures leave out */
    double max_abs;          /**< largest absolute difference of an embedding or patch token */
    double min_cosine;       /**< smallest cosine between one and the expected one */
    double norm_relative;    /**< largest relative difference of `artifact_norm`; 0 if it is no output */
    int64_t flags_differing; /**< how many flags differ; -1 if they are no output */
    int64_t batch_rows;      /**< how many rows of batches were compared with the same images alone */
    double batch_distance;   /**< largest difference between the two, as a share of the vector's length */
} itae_verification;

/** The version of the library that is loaded, as `ITAE_VERSION`. */
ITAE_C_EXPORT const char* itae_version(void);

/** `ITAE_ABI_VERSION` of the library that is loaded; a program must have been compiled with the same. */
ITAE_C_EXPORT int itae_abi_version(void);

/** Why this thread's last call failed: one line; empty if none did. It is valid until this thread's next call. */
ITAE_C_EXPORT const char* itae_last_error(void);

ITAE_C_EXPORT itae_status itae_default_options(itae_options* options);

/** Check the files of a model against its manifest, and load it.
 *  @param path `X.onnx`, `X.engine` or `X.plan`, its manifest beside it.
 *  @param options NULL for the defaults.
 *  @param model where the handle is put; NULL if it fails. `itae_free` ends it. */
ITAE_C_EXPORT itae_status itae_load(const char* path, const itae_options* options, itae_model** model);

/** End a model that no thread uses any more; NULL is allowed. */
ITAE_C_EXPORT void itae_free(itae_model* model);

/** Number of float32 elements of an embedding; 0 if `model` is NULL. */
ITAE_C_EXPORT int64_t itae_width(const itae_model* model);

/** SHA-256 of the model's manifest, 64 digits, which identifies the model; it lives as long as the model. */
ITAE_C_EXPORT const char* itae_manifest_sha256(const itae_model* model);

/** Embed files of pictures.
 *  @param vectors room for `count` x `itae_width(model)` elements, row by row; undefined if it fails. */
ITAE_C_EXPORT itae_status itae_embed_files(const itae_model* model, const char* const* paths, size_t count,
                                           float* vectors);

/** Embed the contents of files of pictures, `sizes[i]` bytes at `contents[i]`; `vectors` as above. */
ITAE_C_EXPORT itae_status itae_embed_contents(const itae_model* model, const uint8_t* const* contents,
                                              const size_t* sizes, size_t count, float* vectors);

/** Embed one decoded picture: `height` x `width` x 3 bytes, RGB, row by row; `vector` has `itae_width(model)`. */
ITAE_C_EXPORT itae_status itae_embed_pixels(const itae_model* model, const uint8_t* rgb, int64_t height, int64_t width,
                                            float* vector);

/** Run the golden sample beside the model, alone and in batches, and compare the results with eager PyTorch's.
 *  ITAE_OK if every limit of the manifest is kept; ITAE_ERROR_MISMATCH if not, with the reasons as the last error.
 *  @param found the figures, also if the model is off; NULL is allowed. */
ITAE_C_EXPORT itae_status itae_verify(const itae_model* model, itae_verification* found);

#ifdef __cplusplus
}
#endif

#endif
