/* Versions of the library, for C and C++. */
#ifndef ITAE_VERSION_H
#define ITAE_VERSION_H

/** The version of the project, as in pyproject.toml. */
#define ITAE_VERSION "0.1.0"

/** Raised when a program that was compiled before can't use the library any more; it is in the name libitae.so.N. */
#define ITAE_ABI_VERSION 1

#endif
