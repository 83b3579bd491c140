#pragma once

/// What other programs may use; all other symbols of the library are hidden.
#define ITAE_EXPORT __attribute__((visibility("default")))
